package topics

import (
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pocketbase/pocketbase/tools/subscriptions"
	"github.com/stretchr/testify/require"
)

// dummy is a holder that counts.
type dummy struct {
	owner   owner
	resumed atomic.Int64
	revoked atomic.Int64
}

func (d *dummy) resume(*grant)                       { d.resumed.Add(1) }
func (d *dummy) revoke(*grant, uint64, outcome) bool { d.revoked.Add(1); return true }
func (d *dummy) move(*grant, *grant)                 {}
func (d *dummy) subscriptionKey() string             { return "a" }
func (d *dummy) guest() owner                        { return d.owner }
func (b *bench) hold(k string, c credentials, d *dummy) *grant {
	g := b.p.grants.acquire(nil, actionSubscribe, k, subscriptions.SubscriptionOptions{}, c)
	b.p.grants.hold(g, d)
	return g
}

func account(name string) credentials { return credentials{collection: "c", id: name} }

// takes makes each decision take that long. In a bubble the time is not the
// CPU's, and a decision is what blocks a worker.
func (b *bench) takes(d time.Duration) *atomic.Int64 {
	count := new(atomic.Int64)
	b.decideBy(func(next func(*grant) outcome) func(*grant) outcome {
		return func(g *grant) outcome {
			count.Add(1)
			time.Sleep(d)
			return next(g)
		}
	})
	return count
}

// attack gives three accounts and twenty guests as many grants as they can get.
func (b *bench) attack() (all []*grant, honest map[string]*grant) {
	for a := range 3 {
		for i := range 1500 {
			all = append(all, b.hold(fmt.Sprintf("t%d", i), account(fmt.Sprint("eve", a)), &dummy{}))
		}
	}
	for c := range 20 {
		o := connectionOwner(fmt.Sprint(c))
		for i := range 150 {
			all = append(all, b.hold(fmt.Sprintf("t%d/%d", c, i), credentials{}, &dummy{owner: o}))
			all = append(all, b.hold(fmt.Sprintf("shared/%d", i), credentials{}, &dummy{owner: o}))
		}
	}
	honest = map[string]*grant{
		"an account":                             b.hold("room/1", account("ann"), &dummy{}),
		"a guest":                                b.hold("room/2", credentials{}, &dummy{owner: connectionOwner("bob")}),
		"a guest who shares a topic with others": b.hold("shared/149", credentials{}, &dummy{owner: connectionOwner("bob")}),
	}
	return all, honest
}

// A write touches everything. Whoever has a few subscriptions is told soon,
// whatever others have, as it is before their backlog.
func TestABacklogDelaysNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, false)
		defer b.close()
		b.takes(time.Millisecond)
		all, honest := b.attack()
		time.Sleep(time.Hour) // everything is decided
		synctest.Wait()

		b.allowed.Store(false)
		b.p.grants.touch(all)
		for _, g := range honest {
			b.p.grants.touch([]*grant{g})
		}
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()

		for name, g := range honest {
			for _, h := range b.p.grants.holders(g) {
				require.EqualValues(t, 1, h.(*dummy).revoked.Load(), name)
			}
		}
		waiting := 0
		for _, g := range all {
			if g.queued.Load() {
				waiting++
			}
		}
		require.Greater(t, waiting, len(all)/2, "the others still wait")
	})
}

// One who comes while the workers are busy with others is told soon, too. And
// writes that go on do not change that.
func TestABacklogThatNeverEndsDelaysNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, false)
		defer b.close()
		b.takes(time.Millisecond)
		all, _ := b.attack()
		ann, told := account("ann"), make(chan time.Time, 1)
		g := b.hold("room/1", ann, &dummy{})
		b.decideBy(func(next func(*grant) outcome) func(*grant) outcome {
			return func(of *grant) outcome {
				if of == g {
					select {
					case told <- time.Now():
					default:
					}
				}
				return next(of)
			}
		})
		for range 50 {
			b.p.grants.touch(all)
			b.p.grants.touch([]*grant{g})
			for len(told) > 0 {
				<-told
			}
			start := time.Now()
			b.p.grants.touch([]*grant{g})
			require.Less(t, (<-told).Sub(start), 100*time.Millisecond)
			time.Sleep(100 * time.Millisecond)
		}
	})
}

// The decisions of those with a long backlog do not take the machine.
func TestHeavyOwnersAreSlowedDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, false)
		defer b.close()
		count := b.takes(time.Millisecond)
		all, _ := b.attack()
		time.Sleep(time.Second)
		b.p.grants.touch(all)
		count.Store(0)
		time.Sleep(10 * time.Second)
		share := float64(count.Load()) / 1000 / 10 // CPUs
		require.LessOrEqual(t, share, 0.6*float64(b.p.grants.queue.heavyLimit))
		require.Greater(t, share, 0.3*float64(b.p.grants.queue.heavyLimit), "nor do they stop")
		time.Sleep(time.Hour)
		for _, g := range all {
			require.True(t, g.fresh(time.Now().UnixNano()), "all are decided at last")
		}
	})
}

// One owner has at most one worker, so a rule that takes long does not stop the
// others.
func TestASlowRuleStopsNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, false)
		defer b.close()
		eve := account("eve")
		b.decideBy(func(next func(*grant) outcome) func(*grant) outcome {
			return func(g *grant) outcome {
				if g.key.auth == eve {
					time.Sleep(decisionTimeout)
				}
				return next(g)
			}
		})
		var slow []*grant
		for i := range 100 {
			slow = append(slow, b.hold(fmt.Sprint("t", i), eve, &dummy{}))
		}
		d := &dummy{}
		g := b.hold("a", account("ann"), d)
		time.Sleep(time.Second)
		b.p.grants.touch(slow)
		b.p.grants.touch([]*grant{g})
		b.allowed.Store(false)
		time.Sleep(time.Second)
		synctest.Wait()
		require.EqualValues(t, 1, d.revoked.Load())
	})
}

// Grants that are released while they wait are not decided, and nothing is left
// of those who held them.
func TestReleasedGrantsLeaveTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, false)
		defer b.close()
		count := b.takes(time.Millisecond)
		var all []*grant
		d := &dummy{owner: "x"}
		for i := range 1000 {
			all = append(all, b.hold(fmt.Sprint("t", i), credentials{}, d))
		}
		time.Sleep(15 * time.Millisecond)
		for _, g := range all {
			b.p.grants.drop(g, d)
		}
		time.Sleep(time.Minute)
		require.Less(t, count.Load(), int64(100))
		q := b.p.grants.queue
		q.mu.Lock()
		defer q.mu.Unlock()
		require.Empty(t, q.lanes)
		require.Empty(t, q.incoming)
		require.Zero(t, q.light.len()+q.heavy.len()+q.heavyBusy)
		require.Empty(t, b.p.grants.list())
		require.Empty(t, b.p.grants.loads)
	})
}

// A publisher makes a few decisions of each account, so that the messages of
// others do not wait for many.
func TestAPublisherDecidesFewOfEachAccount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, false)
		defer b.close()
		count := b.takes(time.Millisecond)
		for a := range 3 {
			for i := range 150 {
				c := b.client()
				k := fmt.Sprintf("a?%d", i)
				g := b.p.grants.acquire(nil, actionSubscribe, k, subscriptions.SubscriptionOptions{}, account(fmt.Sprint("eve", a)))
				b.admit(c, g, k)
			}
		}
		ann := b.client()
		b.admit(ann, b.p.grants.acquire(nil, actionSubscribe, "a", subscriptions.SubscriptionOptions{}, account("ann")), "a")
		time.Sleep(time.Hour)
		synctest.Wait()

		for i := range 5 {
			for _, g := range b.p.grants.list() {
				g.marked.Add(1)
			}
			start := time.Now()
			count.Store(0)
			b.publish(fmt.Sprint(i))
			require.Equal(t, 7*time.Millisecond, time.Since(start), "two of each attacker and one of the honest")
			require.Equal(t, []string{fmt.Sprint(i)}, ann.received())
			time.Sleep(time.Minute) // the others follow
			require.GreaterOrEqual(t, count.Load(), int64(451))
		}
		b.p.hub.clients.Range(func(c, _ any) bool {
			if c != ann {
				require.Len(t, c.(*client).received(), 5)
			}
			return true
		})
	})
}
