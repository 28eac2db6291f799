package topics

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pocketbase/pocketbase/tools/subscriptions"
	"github.com/stretchr/testify/require"
)

// What is held back is bounded for a client, over all of its topics, in messages
// and in bytes.
func TestHeldMessagesAreBoundedForAClient(t *testing.T) {
	for name, limits := range map[string]clientLimits{
		"messages": {messages: 100, bytes: 1 << 20},
		"bytes":    {messages: 1 << 20, bytes: 4 << 10},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, false)
				defer b.close()
				c := b.client()
				c.limits.messages, c.limits.bytes = limits.messages, limits.bytes
				admitted := map[string]*admission{}
				var keys []string
				for i := range 50 {
					k := fmt.Sprint("t", i)
					keys = append(keys, k)
					g := b.p.grants.acquire(nil, actionSubscribe, k, subscriptions.SubscriptionOptions{}, account("ann"))
					require.Nil(t, b.p.grants.decideFor(g))
					admitted[k] = &admission{grant: g}
				}
				require.NoError(t, c.replaceDuring(admitted, func() error {
					c.Unsubscribe()
					c.Subscribe(keys...)
					return nil
				}))

				// decisions do not come
				wait := make(chan struct{})
				b.decideBy(func(next func(*grant) outcome) func(*grant) outcome {
					return func(g *grant) outcome { <-wait; return next(g) }
				})
				b.p.grants.touchAll()
				closed := func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.closed }
				size, sent := 0, 0
				for i := 0; !closed(); i++ {
					require.Less(t, i, 200)
					m := Message{Topic: keys[i%50], Data: []byte(fmt.Sprintf(`"%064d"`, i))}
					_, slow, err := b.p.hub.publish(m, b.p.foreign, retention{})
					require.NoError(t, err)
					for _, c := range slow {
						c.closeSlow()
					}
					if sent++; size == 0 {
						size = heldBy(c)[1]
					}
					require.LessOrEqual(t, heldBy(c)[0], limits.messages)
					require.LessOrEqual(t, heldBy(c)[1], limits.bytes)
				}
				require.Greater(t, sent, 50-1, "more than one topic's")
				require.LessOrEqual(t, sent-1, min(limits.messages, limits.bytes/size+1))
				close(wait)
				c.Discard()
				require.Zero(t, heldBy(c)[0])
				require.Zero(t, heldBy(c)[1])
			})
		})
	}
}

// Nothing stays counted of what was held back and is sent, or dropped.
func TestHeldMessagesAreCountedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, false)
		defer b.close()
		c := b.client()
		g := b.subscribe(c, "a")
		turn := make(chan struct{})
		b.decideBy(func(next func(*grant) outcome) func(*grant) outcome {
			return func(g *grant) outcome { <-turn; return next(g) }
		})
		for i, allowed := range []bool{true, true, false} {
			b.allowed.Store(allowed)
			g.marked.Add(1)
			for range 10 {
				b.fanOut("1")
			}
			require.Equal(t, 10, heldBy(c)[0], i)
			require.NotZero(t, heldBy(c)[1])
			turn <- struct{}{}
			time.Sleep(time.Second)
			synctest.Wait()
			require.Zero(t, heldBy(c)[0], i)
			require.Zero(t, heldBy(c)[1], i)
		}
		require.Len(t, c.received(), 21)
	})
}

func heldBy(c *client) [2]int {
	c.mu.Lock()
	defer c.mu.Unlock()

	return [2]int{c.heldMessages, c.heldBytes}
}
