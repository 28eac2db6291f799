package topics

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pocketbase/pocketbase/tools/subscriptions"
	"github.com/stretchr/testify/require"
)

// A write between the decision of a subscribe request and the hub is decided
// while nobody holds the grant. Who comes then is what the newer decision says.
func TestANewerDecisionCounts(t *testing.T) {
	for name, newest := range map[string]*identity{
		"other fields":   {collection: "c", name: "users", id: "ann", record: []byte(`{"name":"new"}`)},
		"signed out":     {guest: true},
		"tracks no more": nil,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, false)
				defer b.close()
				var now atomic.Pointer[identity]
				now.Store(&identity{collection: "c", name: "users", id: "ann", record: []byte(`{"name":"old"}`)})
				b.p.grants.decide = func(*grant) outcome { return outcome{until: forever, identity: now.Load()} }

				c := b.client()
				g := b.acquire(actionSubscribe, "a")
				a := &admission{grant: g, identity: g.identity.Load()} // as in Plugin.admit

				now.Store(newest)
				b.p.grants.touch([]*grant{g})
				time.Sleep(time.Second)
				synctest.Wait()
				require.True(t, g.fresh(time.Now().UnixNano()))

				require.NoError(t, c.replaceDuring(map[string]*admission{"a": a}, func() error {
					c.Unsubscribe()
					c.Subscribe("a")
					return nil
				}))
				time.Sleep(30 * time.Second)
				synctest.Wait()
				shard := b.p.hub.shard("a")
				shard.mu.Lock()
				defer shard.mu.Unlock()
				for _, m := range shard.members["a"].sorted() {
					require.NotNil(t, newest, "%s", m.json)
					require.Equal(t, newest.id, m.key.id[:min(len(newest.id), len(m.key.id))])
					require.Equal(t, newest.guest, m.key.collection == "", "%s", m.json)
					require.Equal(t, string(newest.record), string(m.record))
				}
			})
		})
	}
}

// A subscriber whose decision has been touched gets no message before a new one,
// and is no member either.
func TestWhoIsNotDecidedIsNotShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newPresenceBench(t)
		defer b.close()
		c, _ := b.watch()
		time.Sleep(time.Second)
		c.received()

		other := b.client()
		g := b.acquire(actionSubscribe, "a?x")
		a := &admission{grant: g, identity: g.identity.Load()}
		decide := b.p.grants.decide
		b.p.grants.decide = func(of *grant) outcome {
			if of == g {
				return outcome{denial: denyRule(actionSubscribe), reason: reasonRule}
			}
			return decide(of)
		}
		g.marked.Add(1) // a commit has taken the right
		require.NoError(t, other.replaceDuring(map[string]*admission{"a?x": a}, func() error {
			other.Unsubscribe()
			other.Subscribe("a?x")
			return nil
		}))
		require.Empty(t, told(t, c.received()))
	})
}

// Somebody who comes while the end of the topic's occupancy is on its way undoes
// that.
func TestAnEndOfOccupancyIsUndone(t *testing.T) {
	calls := newHookCalls()
	told := make(chan callKind, 10)
	calls.trigger = func(c call) error {
		told <- c.kind
		return nil
	}
	calls.wantsTopics.Store(true)
	calls.occupied.BindFunc(func(*TopicEvent) error { return nil })
	p := newPresence(newHub(), nil, calls, nil, Config{}.withDefaults())
	p.start.Do(func() {}) // the test is the goroutine
	end := func() *occupancy {
		p.vacate("a")
		ended := p.take(time.Now().Add(time.Hour))
		require.Len(t, ended, 1)
		return ended[0].occupancy
	}

	p.occupy("a")
	require.Equal(t, callOccupied, <-told)
	o := end()
	p.occupy("a")
	p.vacated(o)
	p.vacated(end())
	require.Equal(t, callVacated, <-told)
	require.Empty(t, p.occupied)
	require.Empty(t, told)
	calls.close()
	calls.running.Wait()
}

// Many clients come, go, lose their rights and get them back. At the end nothing
// is left of them.
func TestNothingIsLeftOfMembers(t *testing.T) {
	rules, err := newRules(nil)
	require.NoError(t, err)
	h := newHub()
	newHistory(h, Config{}.withDefaults())
	gs := newGrants(rules, 0)
	calls := newHookCalls()
	calls.trigger = func(call) error { return nil }
	calls.failed = func(call, error) {}
	calls.wantsTopics.Store(true)
	calls.occupied.BindFunc(func(*TopicEvent) error { return nil })
	calls.wantsMembers.Store(true)
	calls.joined.BindFunc(func(*MemberEvent) error { return nil })
	p := newPresence(h, gs, calls, nil, Config{PresenceGrace: 5 * time.Millisecond, PresenceSnapshot: 5}.withDefaults())
	h.identify = func(*client, string) *identity { return &identity{guest: true} }
	b := &bench{t: t, p: &Plugin{hub: h, rules: rules, grants: gs, presence: p, config: Config{}.withDefaults()}}
	b.p.foreign = newForeignClients(subscriptions.NewBroker(), gs, foreignLimits{}, func(string) {})
	var mode atomic.Int64
	gs.revoked = func(*grant, outcome) {}
	gs.decide = func(g *grant) outcome {
		m := mode.Load() + int64(len(g.key.topic)+len(g.key.options))
		switch {
		case m%7 == 3:
			return outcome{denial: denyRule(actionSubscribe), reason: reasonRule}
		case m%5 == 1:
			return outcome{until: forever}
		case m%3 == 1:
			return outcome{until: time.Now().Add(time.Millisecond).UnixNano(), identity: &identity{guest: true}}
		}
		return outcome{until: forever, identity: &identity{collection: "c", name: "users", id: g.key.auth.id, record: []byte(fmt.Sprintf(`{"m":%d}`, m%4))}}
	}
	defer b.close()

	names := []string{"a", "bb", "ccc"}
	options := []string{"", `?options={"query":{"presence":"true"}}`, `?options={"query":{"state":{"a":1}}}`, `?options={"query":{"resume":"x"}}`, `?options={"query":{"resume":"y"}}`}
	var all sync.WaitGroup
	stop := time.Now().Add(2 * time.Second)
	for w := range 6 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 1))
			for time.Now().Before(stop) {
				c := b.client()
				c.limits.messages = 5
				for range r.IntN(8) {
					if r.IntN(6) == 0 {
						c.Subscribe(names[r.IntN(3)])
						continue
					}
					granted := map[string]*admission{}
					var keys []string
					for range r.IntN(4) {
						k := names[r.IntN(3)] + options[r.IntN(len(options))]
						if granted[k] != nil {
							continue
						}
						g := gs.acquire(nil, actionSubscribe, k, subscriptions.SubscriptionOptions{}, credentials{id: fmt.Sprint("u", r.IntN(3))})
						if gs.decideFor(g) != nil {
							gs.release(g)
							continue
						}
						a := &admission{grant: g, identity: g.identity.Load()}
						a.options, _ = optionsOf(k, parseKeys([]string{k})[k])
						if a.options.presence {
							a.watch = gs.acquire(nil, actionPresence, k, subscriptions.SubscriptionOptions{}, g.key.auth)
							if a.refusal = gs.decideFor(a.watch); a.refusal != nil {
								gs.release(a.watch)
								a.watch = nil
							}
						}
						granted[k] = a
						keys = append(keys, k)
					}
					_ = c.takeTurn(context.Background())
					_ = c.replaceDuring(granted, func() error {
						c.Unsubscribe()
						c.Subscribe(keys...)
						return nil
					})
					c.endTurn()
					h.setState(c, names[r.IntN(3)], []byte(`{"x":1}`))
					if r.IntN(2) == 0 {
						c.received()
						c.refill()
					}
					if r.IntN(5) == 0 {
						mode.Add(1)
						gs.touchAll()
					}
				}
				c.Discard()
				h.clients.Delete(c)
			}
		})
	}
	all.Wait()
	left := func() string {
		for i := range h.shards {
			shard := &h.shards[i]
			shard.mu.Lock()
			n, m := len(shard.topics), len(shard.members)
			shard.mu.Unlock()
			if n+m > 0 {
				return fmt.Sprint("shard ", n, m)
			}
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		calls.mu.Lock()
		defer calls.mu.Unlock()
		if n := len(gs.list()) + len(p.occupied) + len(p.endings) + len(calls.topics) + len(calls.waiting); n > 0 {
			return fmt.Sprint("grants ", len(gs.list()), " occupied ", len(p.occupied), " endings ", len(p.endings), " calls ", len(calls.topics))
		}
		return ""
	}
	require.Eventually(t, func() bool { return left() == "" }, 10*time.Second, 5*time.Millisecond)
}

// Members that could not be written are no reason to end the epochs of histories.
func TestLostMembersBreakNoHistory(t *testing.T) {
	d := newDisk(1<<20, nil)
	d.ready = true
	for i := range diskBacklog + 1 {
		d.addState(fmt.Sprint(i), &memberWrite{})
	}
	require.False(t, d.broken)
	require.Len(t, d.states.pending, diskBacklog)
}
