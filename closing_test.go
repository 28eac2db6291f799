package topics

import (
	"testing"

	"github.com/pocketbase/pocketbase/tools/subscriptions"
	"github.com/stretchr/testify/require"
)

// A client whose queue is found full while it replaces its subscriptions is
// closed after that, without its locks.
func TestAFullClientIsClosedWithoutItsLocks(t *testing.T) {
	b := newBench(t, false)
	defer b.close()
	c := b.client()
	closed := 0
	c.onClosed = func(*client, string) {
		closed++
		require.True(t, c.subsMu.TryLock())
		c.subsMu.Unlock()
		require.True(t, c.mu.TryLock())
		c.mu.Unlock()
	}
	g := b.subscribe(c, "a")
	g.queued.Store(true) // the decision is on its way
	g.marked.Add(1)
	b.p.grants.decide = func(*grant) outcome { return outcome{until: forever} }

	// more is held, and more waits, than fits together
	s := c.subs["a"]
	for range c.limits.messages - 1 {
		require.True(t, s.hold(newFrame(subscriptions.Message{Name: "a", Data: []byte("1")})))
		require.True(t, c.enqueue(newFrame(subscriptions.Message{Name: "b", Data: []byte("1")})))
	}
	again := b.p.grants.acquire(nil, actionSubscribe, "a", subscriptions.SubscriptionOptions{}, credentials{})
	require.Nil(t, b.p.grants.decideFor(again))
	b.admit(c, again, "a")
	require.Equal(t, 1, closed)
}
