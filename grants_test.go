package topics

import (
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pocketbase/pocketbase/tools/subscriptions"
	"github.com/stretchr/testify/require"
)

// bench is the hub and the grants without PocketBase: decisions are whatever
// the test says, at the moment it says.
type bench struct {
	t *testing.T
	p *Plugin

	allowed atomic.Bool
	decide  atomic.Pointer[func(*grant) outcome]
	asked   chan struct{} // a decision has read allowed
	finish  chan struct{} // lets it go on
}

func newBench(t *testing.T, stepwise bool) *bench {
	b := &bench{t: t, asked: make(chan struct{}), finish: make(chan struct{})}
	b.allowed.Store(true)

	rules, err := newRules(nil)
	require.NoError(t, err)
	b.p = &Plugin{hub: newHub(), rules: rules, grants: newGrants(rules, 0), config: Config{}.withDefaults()}
	rules.current.Store(new(ruleset))
	newHistory(b.p.hub, b.p.config)
	b.p.history = b.p.hub.history
	b.p.presence = newPresence(b.p.hub, b.p.grants, newHookCalls(), nil, b.p.config)
	b.p.hub.identify = func(*client, string) *identity { return nil }
	b.p.foreign = newForeignClients(subscriptions.NewBroker(), b.p.grants, foreignLimits{}, func(string) {})
	b.p.grants.revoked = func(*grant, outcome) {}
	b.p.grants.decide = func(g *grant) outcome { return (*b.decide.Load())(g) }
	first := func(*grant) outcome {
		allowed := b.allowed.Load() // what a query finds
		if stepwise {
			select {
			case b.asked <- struct{}{}:
			case <-b.p.grants.stop:
				return outcome{denial: denyRule(actionSubscribe)}
			}
			select {
			case <-b.finish:
			case <-b.p.grants.stop:
			}
		}
		if !allowed {
			return outcome{denial: denyRule(actionSubscribe), reason: reasonRule}
		}
		return outcome{until: forever}
	}
	b.decide.Store(&first)
	return b
}

// decideBy wraps what decides.
func (b *bench) decideBy(wrap func(next func(*grant) outcome) func(*grant) outcome) {
	decide := wrap(*b.decide.Load())
	b.decide.Store(&decide)
}

func (b *bench) close() {
	b.p.presence.close()
	b.p.hub.close()
	b.p.grants.close()
}

// client returns a client without a connection, whose queue the test reads.
func (b *bench) client() *client {
	c := newClient(subscriptions.NewDefaultClient(), b.p.hub, b.p.grants, httptest.NewRecorder(),
		clientLimits{messages: 100, bytes: 1 << 20, writeTimeout: time.Second, heartbeat: -1}, func(*client, string) {})
	b.p.hub.clients.Store(c, struct{}{})
	return c
}

// admit does what a subscribe request does between deciding and core.
func (b *bench) admit(c *client, g *grant, key string) {
	require.NoError(b.t, c.replaceDuring(map[string]*admission{key: {grant: g}}, func() error {
		c.Unsubscribe()
		c.Subscribe(key)
		return nil
	}))
}

// subscribe decides and admits.
func (b *bench) subscribe(c *client, key string) *grant {
	g := b.p.grants.acquire(nil, actionSubscribe, key, subscriptions.SubscriptionOptions{}, credentials{})
	require.Nil(b.t, b.p.grants.decideFor(g))
	b.admit(c, g, key)
	return g
}

// received empties the client's queue.
func (c *client) received() []string {
	var names []string
	for len(c.channel) > 0 {
		<-c.channel
		frames, err := c.take()
		if err != nil {
			return names
		}
		for _, f := range *frames {
			names = append(names, string(f.message().Data))
		}
		c.done(frames)
	}
	return names
}

func (b *bench) publish(data string) {
	_, err := b.p.deliver(Message{Topic: "a", Data: []byte(data)})
	require.NoError(b.t, err)
}

// fanOut is publish without the decisions that a publisher makes itself.
func (b *bench) fanOut(data string) {
	_, slow, err := b.p.hub.publish(Message{Topic: "a", Data: []byte(data)}, b.p.foreign, retention{})
	require.NoError(b.t, err)
	for _, c := range slow {
		c.closeSlow()
	}
}

const revokedNotice = `{"@topics":{"type":"revoked","topic":"a","code":"topic_revoked","message":"You are not allowed to subscribe to this topic any more."}}`

// A decision that read before a commit cannot make the grant fresh after it.
func TestDecisionInFlightWhileTheCommitHappens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, true)
		defer b.close()
		c := b.client()

		subscribed := make(chan *grant)
		go func() { subscribed <- b.subscribe(c, "a") }()
		<-b.asked
		b.finish <- struct{}{}
		g := <-subscribed

		b.p.grants.touch([]*grant{g}) // a commit that changes nothing
		<-b.asked                     // its decision has read: allowed
		for range 2 {
			// another one overtakes it, and the next as well
			b.p.grants.touch([]*grant{g})
			b.finish <- struct{}{}
			<-b.asked
		}

		b.allowed.Store(false)        // the commit that matters
		b.p.grants.touch([]*grant{g}) // and its success hooks
		b.finish <- struct{}{}        // the last decision has read: allowed
		synctest.Wait()
		published := make(chan struct{})
		go func() { b.publish("1"); close(published) }()

		// answer all decisions that come
		done := false
		for !done {
			select {
			case b.finish <- struct{}{}:
			case <-b.asked:
			case <-published:
				done = true
			}
		}
		go func() {
			for {
				select {
				case b.finish <- struct{}{}:
				case <-b.asked:
				case <-b.p.grants.stop:
					return
				}
			}
		}()
		time.Sleep(time.Second) // the bubble's clock: everything has settled

		require.Equal(t, []string{revokedNotice}, c.received())
	})
}

// A commit between the decision to let somebody in and the moment they are in.
func TestSubscribeInFlightWhileTheCommitHappens(t *testing.T) {
	for _, publish := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) { subscribeInFlight(t, publish) })
	}
}

func subscribeInFlight(t *testing.T, publish bool) {
	b := newBench(t, false)
	defer b.close()
	c := b.client()

	g := b.p.grants.acquire(nil, actionSubscribe, "a", subscriptions.SubscriptionOptions{}, credentials{})
	require.Nil(t, b.p.grants.decideFor(g))

	b.allowed.Store(false)
	b.p.grants.touch([]*grant{g})
	synctest.Wait()
	time.Sleep(time.Second) // even after the grant was decided anew, without a holder

	b.admit(c, g, "a")
	if publish {
		b.publish("1")
	} else {
		time.Sleep(time.Second) // told without a message
	}
	require.Equal(t, []string{revokedNotice}, c.received())

	time.Sleep(time.Second)
	b.publish("2")
	require.Empty(t, c.received())
	require.Empty(t, b.p.grants.list(), "nothing is left")
}

// A commit while a message is being handed out: who comes later in the same
// fan-out is asked again already, and nobody gets the next message.
func TestFanOutInFlightWhileTheCommitHappens(t *testing.T) {
	b := newBench(t, false)
	defer b.close()
	one, two := b.client(), b.client()
	b.subscribe(one, "a?1")
	g := b.subscribe(two, "a?2")

	// the fan-out is stopped at whichever comes first
	one.mu.Lock()
	two.mu.Lock()
	started := make(chan struct{})
	published := make(chan struct{})
	go func() {
		close(started)
		b.publish("1")
		close(published)
	}()
	<-started

	b.allowed.Store(false)
	b.p.grants.touch([]*grant{g})
	one.mu.Unlock()
	two.mu.Unlock()
	<-published

	b.publish("2")
	require.Equal(t, []string{"1", "2"}, one.received())
	require.Contains(t, [][]string{{revokedNotice}, {"1", revokedNotice}}, two.received())
}

// A denial that a later commit has overtaken does not throw anybody out.
func TestAnOvertakenDenialDoesNotCount(t *testing.T) {
	b := newBench(t, false)
	defer b.close()
	c := b.client()
	g := b.subscribe(c, "a")

	b.allowed.Store(false)
	b.p.grants.touch([]*grant{g})
	o, marked := b.p.grants.decideNow(g)
	require.NotNil(t, o.denial)

	b.allowed.Store(true)
	b.p.grants.touch([]*grant{g})
	b.p.grants.decideAgain(g)

	for s := range g.holders {
		require.False(t, s.revoke(g, marked, o))
	}
	b.publish("1")
	require.Equal(t, []string{"1"}, c.received())
}

// Where a publisher does not decide itself, messages wait for the decision,
// and keep their order.
func TestMessagesWaitForTheDecision(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, false)
		defer b.close()

		clients := make([]*client, 10) // guests, with options
		var all []*grant
		for i := range clients {
			clients[i] = b.client()
			all = append(all, b.subscribe(clients[i], "a?"+string(rune('A'+i))))
		}

		var decisions atomic.Int64
		follow := make(chan struct{})
		b.decideBy(func(next func(*grant) outcome) func(*grant) outcome {
			return func(g *grant) outcome {
				if decisions.Add(1) > inlinePerOwner {
					<-follow
				}
				return next(g)
			}
		})
		b.publish("0") // all are fresh
		for _, g := range all {
			g.marked.Add(1) // a write, which nobody but the publisher knows of
		}
		b.publish("1")
		atOnce := 0
		for _, c := range clients {
			if topics, _ := c.queued(); topics.messages > 1 {
				atOnce++
			}
		}
		require.Equal(t, inlinePerOwner, atOnce, "the others are held back")
		b.fanOut("2")
		close(follow)
		time.Sleep(time.Second)
		b.publish("3")
		for _, c := range clients {
			require.Equal(t, []string{"0", "1", "2", "3"}, c.received())
		}

		b.allowed.Store(false)
		b.p.grants.touch(all)
		b.publish("4")
		time.Sleep(time.Second)
		for _, c := range clients {
			require.Equal(t, []string{revokedNotice}, c.received())
		}
	})
}

// What is held back counts against the client's queue.
func TestHeldMessagesAreBounded(t *testing.T) {
	b := newBench(t, true)
	c := b.client()
	go func() { <-b.asked; b.finish <- struct{}{} }()
	b.subscribe(c, "a")

	b.p.grants.touchAll()
	<-b.asked // a worker has begun to decide
	for range 101 {
		b.fanOut("1")
	}
	require.True(t, c.IsDiscarded(), "closed as a slow consumer")

	go func() {
		for {
			select {
			case b.finish <- struct{}{}:
			case <-b.asked:
			case <-b.p.grants.stop:
				return
			}
		}
	}()
	b.close()
}

// A subscription list that is being replaced is not revoked from; the denial
// is asked again.
func TestRevocationWaitsForTheTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, false)
		defer b.close()
		c := b.client()
		g := b.subscribe(c, "a")

		require.NoError(t, c.takeTurn(t.Context()))
		b.allowed.Store(false)
		b.p.grants.touch([]*grant{g})
		time.Sleep(time.Second)
		b.publish("1")
		require.Empty(t, c.received())
		c.endTurn()
		time.Sleep(time.Second)
		require.Equal(t, []string{revokedNotice}, c.received())
	})
}

// A rule that asks for the time and takes longer than its decision counts.
func TestASlowClockRuleDelivers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, false)
		defer b.close()
		var decisions atomic.Int64
		b.p.grants.decide = func(*grant) outcome {
			time.Sleep(2 * clockTTL)
			decisions.Add(1)
			return outcome{until: time.Now().Add(clockTTL).UnixNano()}
		}
		c := b.client()
		b.subscribe(c, "a")
		for range 5 {
			b.publish("1")
			time.Sleep(2 * time.Second)
		}
		require.Len(t, c.received(), 5)
		require.Less(t, decisions.Load(), int64(30), "in 10 seconds")
	})
}
