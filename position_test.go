package topics

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A message counts as received when its flush is as long ago as the overlap,
// on the connection that has the position.
func TestPositions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const overlap = 4 * time.Second
		p := &position{id: "p"}
		first, second, third := new(subscription), new(subscription), new(subscription)
		flushed := func(s *subscription, offset uint64) {
			p.flushed(s, mark{epoch: "e", offset: offset, at: time.Now()}, overlap)
		}

		_, ok := p.take(first, overlap)
		require.False(t, ok, "it is new")
		p.start(first, mark{epoch: "e", offset: 10, at: time.Now()})
		for offset := uint64(11); offset <= 100; offset++ {
			flushed(first, offset)
			time.Sleep(100 * time.Millisecond)
			require.LessOrEqual(t, len(p.marks), 16, "bounded")
		}
		m, ok := p.take(second, overlap)
		require.True(t, ok)
		require.InDelta(t, 60, m.offset, 6)
		require.LessOrEqual(t, m.offset, uint64(60))

		// the other connection writes no more, and its marks do not count
		flushed(first, 200)
		time.Sleep(2 * overlap)
		again, ok := p.take(third, overlap)
		require.True(t, ok)
		require.Equal(t, m.offset, again.offset)

		flushed(third, 61)
		flushed(third, 90)
		flushed(third, 80) // of a flush that two keys shared
		time.Sleep(overlap)
		m, ok = p.take(first, overlap)
		require.True(t, ok)
		require.EqualValues(t, 90, m.offset)
	})
}
