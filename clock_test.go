package topics

import (
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// asksForTheTime makes all rules of the bench ask for the time.
func (b *bench) asksForTheTime() {
	b.decideBy(func(next func(*grant) outcome) func(*grant) outcome {
		return func(g *grant) outcome {
			o := next(g)
			if o.denial == nil {
				o.until, o.clock = time.Now().Add(clockTTL).UnixNano(), true
			}
			return o
		}
	})
}

// Where nobody publishes, decisions of rules that ask for the time cost next to
// nothing, however many there are.
func TestIdleClockRulesCostLittle(t *testing.T) {
	for accounts, share := range map[int]float64{1: 0.02, 10: 0.15, 50: 0.3, 1000: 0.3} {
		t.Run(fmt.Sprint(accounts), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, false)
				defer b.close()
				const cost = 350 * time.Microsecond // as measured
				count := b.takes(cost)
				b.asksForTheTime()
				for a := range accounts {
					for i := range min(1000, 20_000/accounts) {
						b.hold(fmt.Sprint("t", i), account(fmt.Sprint("eve", a)), &dummy{})
					}
				}
				time.Sleep(time.Minute)
				count.Store(0)
				time.Sleep(20 * time.Second)
				require.Less(t, float64(count.Load())*cost.Seconds()/20, share)
			})
		})
	}
}

// Meanwhile an honest subscriber is told within a second.
func TestAnIdleSubscriberIsToldInASecond(t *testing.T) {
	for accounts, within := range map[int]time.Duration{0: time.Second, 1: time.Second, 10: time.Second, 50: time.Second, 1000: 3 * time.Second} {
		t.Run(fmt.Sprint(accounts), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, false)
				defer b.close()
				b.takes(350 * time.Microsecond)
				b.asksForTheTime()
				for a := range accounts {
					for i := range min(1000, 20_000/accounts) {
						b.hold(fmt.Sprint("t", i), account(fmt.Sprint("eve", a)), &dummy{})
					}
				}
				d, ann := &dummy{}, account("ann")
				g := b.hold("a", ann, d)
				guest := &dummy{owner: connectionOwner("bob")}
				b.hold("a", credentials{}, guest)
				time.Sleep(time.Minute)
				require.NotZero(t, d.resumed.Load())

				b.decideBy(func(next func(*grant) outcome) func(*grant) outcome {
					return func(of *grant) outcome {
						o := next(of)
						if of == g || of.key.auth.id == "" {
							return outcome{denial: denyRule(actionSubscribe), reason: reasonRule}
						}
						return o
					}
				})
				time.Sleep(within)
				synctest.Wait()
				require.NotZero(t, d.revoked.Load())
				require.NotZero(t, guest.revoked.Load())
			})
		})
	}
}

// A message that finds a decision ended, after the publisher has looked, is sent
// soon, and so are those that follow it, however many such decisions its
// subscriber has. It does not wait for the turns of idle decisions.
func TestAMessageDoesNotWaitForIdleTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, false)
		defer b.close()
		b.takes(time.Millisecond)
		b.asksForTheTime()
		for i := range 1000 {
			b.hold(fmt.Sprint("t", i), credentials{}, &dummy{owner: connectionOwner("eve")})
		}
		c := b.client()
		c.guest = connectionOwner("eve")
		b.subscribe(c, "a")
		time.Sleep(5 * time.Minute)
		for i := range 20 {
			time.Sleep(10 * time.Second)
			b.fanOut(fmt.Sprint(i))
			time.Sleep(20 * time.Millisecond)
			require.Equal(t, []string{fmt.Sprint(i)}, c.received())
		}
	})
}

// A decision may have ended before its subscribers are told of it: then they ask
// for another one.
func TestADecisionThatEndsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, false)
		defer b.close()
		b.asksForTheTime()
		c := b.client()
		b.subscribe(c, "a")
		time.Sleep(10*time.Second + 2*clockTTL) // between two ticks

		var decisions atomic.Int64
		b.decideBy(func(next func(*grant) outcome) func(*grant) outcome {
			return func(g *grant) outcome {
				o := next(g)
				if decisions.Add(1) <= 3 {
					o.until = time.Now().UnixNano()
				}
				return o
			}
		})
		require.Empty(t, c.received())
		b.fanOut("1")
		require.Empty(t, c.received())
		time.Sleep(50 * time.Millisecond)
		require.Equal(t, []string{"1"}, c.received())
	})
}

// What is told of members does not wait for the turns of idle decisions either,
// nor does what follows from the history.
func TestMembersDoNotWaitForIdleTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newPresenceBench(t)
		defer b.close()
		count := b.takes(time.Millisecond)
		b.asksForTheTime()
		c, _ := b.watch()
		for i := range 1000 {
			b.hold(fmt.Sprint("t", i), credentials{}, &dummy{owner: c.guest})
		}
		time.Sleep(time.Minute)
		c.received()
		for i := range 10 {
			time.Sleep(10*time.Second + 2*clockTTL)
			b.join()
			time.Sleep(flushPeriod + 50*time.Millisecond)
			require.Equal(t, []string{fmt.Sprintf("presence %d/%d", i+2, i+2)}, told(t, c.received()))
		}

		c.subsMu.Lock()
		s := c.subs[watchingA]
		c.subsMu.Unlock()
		shard := b.p.hub.shard("a")
		shard.mu.Lock()
		s.behind = &cursor{}
		c.behind.Add(1)
		shard.mu.Unlock()
		time.Sleep(10 * time.Second)
		require.False(t, s.grant.fresh(time.Now().UnixNano()))
		before := count.Load()
		c.refill()
		time.Sleep(20 * time.Millisecond)
		require.Greater(t, count.Load(), before)
		shard.mu.Lock()
		defer shard.mu.Unlock()
		require.Nil(t, s.behind, "live")
	})
}
