package topics_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

func TestReplay(t *testing.T) {
	app, s := newHistoryApp(t, topics.Config{})
	notifyAll(t, app, "a", 1, 5)

	c := s.connect()
	c.mustSubscribe("", key("a", map[string]any{"envelope": true, "replay": 3}))
	require.Equal(t, "ready", c.envelope().Type)
	notifyAll(t, app, "a", 6, 6)
	require.Equal(t, "3 4 5 6", story(t, c.drain()))

	// the same key again changes nothing; another asks anew
	c.mustSubscribe("", key("a", map[string]any{"envelope": true, "replay": 3}), "b")
	require.Equal(t, "topic_unknown", c.next().notice(t).Code)
	c.mustSubscribe("", key("a", map[string]any{"envelope": true, "replay": "100"}))
	require.Equal(t, "ready 1 2 3 4 5 6", story(t, c.drain()))

	// without the envelope it is the data alone
	plain := s.connect()
	plain.mustSubscribe("", key("a", map[string]any{"replay": 2}))
	require.Equal(t, "5", plain.next().data)
	require.Equal(t, "6", plain.next().data)
	plain.quiet()

	// no more than is kept
	notifyAll(t, app, "a", 7, 20)
	last := s.connect()
	last.mustSubscribe("", key("a", map[string]any{"envelope": true, "replay": 1000}))
	require.Equal(t, "ready 11 12 13 14 15 16 17 18 19 20", story(t, last.drain()))
}

// A replay and what is published meanwhile make one sequence.
func TestReplayAndLiveJoin(t *testing.T) {
	app := newApp(t, topics.Config{HistoryMessages: 100_000, HistoryBytes: 64 << 20})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "a", "subscribeRule": "", "history": 100_000})

	const messages = 3000
	var publisher sync.WaitGroup
	publisher.Go(func() { notifyAll(t, app, "a", 1, messages) })

	var subscribers sync.WaitGroup
	for range 8 {
		subscribers.Go(func() {
			c := s.connect()
			c.mustSubscribe("", key("a", map[string]any{"replay": 100_000}))
			for want := 1; want <= messages; want++ {
				require.Equal(t, fmt.Sprint(want), c.next().data)
			}
		})
	}
	subscribers.Wait()
	publisher.Wait()
}

// Messages that fill the queue one by one all come.
func TestReplayOfLargeMessages(t *testing.T) {
	app := newApp(t, topics.Config{QueueBytes: 64 << 10, MaxPayload: -1})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "a", "subscribeRule": "", "history": 10})
	for range 5 {
		require.NoError(t, topics.Notify(app, "a", strings.Repeat("x", 32_300)))
	}

	c := s.connect()
	c.mustSubscribe("", key("a", map[string]any{"envelope": true, "replay": 10}))
	require.Equal(t, "ready", c.envelope().Type)
	for i := 1; i <= 5; i++ {
		require.True(t, strings.HasSuffix(c.envelope().ID, fmt.Sprint(":", i)))
	}
}
