package topics

import (
	"fmt"
	"testing"

	"github.com/pocketbase/pocketbase/tools/subscriptions"
	"github.com/stretchr/testify/require"
)

func numbered(i, size int) subscriptions.Message {
	return subscriptions.Message{Name: "a", Data: []byte(fmt.Sprintf("%0*d", size, i))}
}

// Whatever is queued and taken, in pieces: all of it comes, in order, and the
// counts are right.
func TestTheQueueIsTakenInOrder(t *testing.T) {
	b := newBench(t, false)
	defer b.close()
	c := b.client()
	c.limits = clientLimits{messages: 1 << 20, bytes: 1 << 30, recordBytes: 1 << 30}
	random := newRand(t)

	sent, received := 0, 0
	take := func() {
		<-c.channel
		frames, err := c.take()
		require.NoError(t, err)
		size := 0
		for _, f := range *frames {
			require.Equal(t, numbered(received, len(f.data.json())).Data, f.data.json())
			received++
			size += f.size()
		}
		require.True(t, size <= takeBytes || len(*frames) == 1)
		c.done(frames)
		giveBack(frames)
	}
	for range 200 {
		for range random.IntN(100) {
			f := newFrame(numbered(sent, 10+random.IntN(20<<10)))
			f.record = random.IntN(2) == 0
			require.True(t, c.enqueue(f))
			sent++
		}
		if len(c.channel) > 0 && random.IntN(3) > 0 {
			take()
		}
	}
	for len(c.channel) > 0 {
		take()
	}
	require.Equal(t, sent, received)
	require.Zero(t, c.topics)
	require.Zero(t, c.records)
	require.Nil(t, c.queue)
}

// A flood of one kind takes no room from the other.
func TestRecordsAndTopicsHaveTheirOwnRoom(t *testing.T) {
	for _, records := range []bool{false, true} {
		b := newBench(t, false)
		c := b.client()
		c.limits = clientLimits{messages: 10, bytes: 10_000, recordBytes: 20_000}
		fill := func(record bool) (n int) {
			for ; ; n++ {
				f := newFrame(numbered(n, 500))
				f.record = record
				if !c.enqueue(f) {
					return n
				}
			}
		}
		first, second := fill(records), fill(!records)
		if records {
			first, second = second, first
		}
		require.Equal(t, 10, first, "messages of topics")
		require.Equal(t, 38, second, "records")
		b.close()
	}
}
