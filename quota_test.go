package topics_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/subscriptions"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

// numbered returns n keys of the topic's kind.
func numbered(format string, n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprintf(format, i)
	}
	return keys
}

// refused sends the keys and returns those that were denied by now, with their
// codes.
func (c *stream) refused(token string, keys ...string) map[string]string {
	c.s.t.Helper()

	c.mustSubscribe(token, keys...)
	codes := map[string]string{}
	for _, e := range c.drain() {
		codes[e.name] = e.notice(c.s.t).Code
	}
	return codes
}

// subscribed returns which of the keys the server has for the connection.
func (c *stream) subscribed() []string {
	found, err := c.s.app.SubscriptionsBroker().ClientById(c.id)
	require.NoError(c.s.t, err)
	var keys []string
	for key := range found.Subscriptions() {
		if key != "public" {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

func limitedApp(t *testing.T, config topics.Config) (*server, core.App) {
	t.Helper()

	config.SweepInterval = -1
	app := newWorldApp(t, config)
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "t/{n}", "subscribeRule": ""})
	define(t, app, map[string]any{"pattern": "shut/{n}"})
	define(t, app, map[string]any{"pattern": "mine/{n}", "subscribeRule": "@request.auth.id != ''"})
	return s, app
}

// Each limit of one connection refuses what is new, in the order of the request,
// and leaves what is there; and what is refused comes in when there is room.
func TestLimitsOfAConnection(t *testing.T) {
	for name, c := range map[string]struct {
		config topics.Config
		format string
		code   string
	}{
		"keys per topic": {topics.Config{MaxKeysPerTopic: 3}, "t/1?%d", "topic_subscriptions_exceeded"},
		"subscriptions":  {topics.Config{MaxSubscriptions: 3}, "t/%d", "subscriptions_exceeded"},
	} {
		for as := range 3 {
			t.Run(fmt.Sprint(name, as), func(t *testing.T) {
				s, app := limitedApp(t, c.config)
				token := ""
				switch as {
				case 1:
					_, token = newUser(t, app, "ann")
				case 2:
					token = newSuperuser(t, app) // a limit of one connection holds for all
				}
				keys := numbered(c.format, 6)
				conn := s.connect()

				require.Equal(t, map[string]string{keys[3]: c.code, keys[4]: c.code}, conn.refused(token, keys[:5]...))
				require.Equal(t, keys[:3], conn.subscribed())

				// the order of the list does not matter for those that are there
				reversed := slices.Clone(keys[:5])
				slices.Reverse(reversed)
				require.Empty(t, conn.refused(token, reversed...), "told already")
				require.Equal(t, keys[:3], conn.subscribed())
				require.NoError(t, topics.Notify(app, topicOf(keys[0]), 1))
				require.Equal(t, "1", conn.next().data)
				conn.drain()

				// one goes, the first of the others comes
				require.Equal(t, map[string]string{keys[5]: c.code}, conn.refused(token, keys[1], keys[2], keys[3], keys[4], keys[5]))
				require.Equal(t, keys[1:4], conn.subscribed())

				// neither denied keys nor PocketBase's own take a place
				other := s.connect()
				more := append(numbered("shut/%d", 10), "PB_CONNECT", "users/*", "a//b", "nowhere")
				codes := other.refused(token, append(more, keys[:3]...)...)
				if as < 2 {
					require.Len(t, codes, 12)
					require.NotContains(t, codes, keys[0])
					require.Contains(t, other.subscribed(), keys[2])
				}
				require.NotZero(t, topics.From(app).Stats().SubscriptionsRefused)
			})
		}
	}
}

func topicOf(key string) string {
	for i := range key {
		if key[i] == '?' {
			return key[:i]
		}
	}
	return key
}

func TestSubscriptionsOfAnAccount(t *testing.T) {
	s, app := limitedApp(t, topics.Config{MaxSubscriptionsPerAccount: 4})
	ann, annToken := newUser(t, app, "ann")
	_, bobToken := newUser(t, app, "bob")
	const code = "account_subscriptions_exceeded"
	seats := func() int { n, _, _ := topics.Seats(app); return n }

	one, two := s.connect(), s.connect()
	require.Empty(t, one.refused(annToken, "t/1", "t/2", "t/3", "PB_CONNECT"))
	require.Equal(t, map[string]string{"t/2": code}, two.refused(annToken, "t/1", "t/2"))
	require.Empty(t, one.refused(annToken, "t/3", "t/2", "t/1"), "what a connection has stays")
	require.Equal(t, 4, seats())

	// others are not concerned, nor guests, nor superusers
	require.Empty(t, s.connect().refused(bobToken, numbered("t/%d", 4)...))
	require.Empty(t, s.connect().refused("", numbered("t/%d", 20)...))
	require.Empty(t, s.connect().refused(newSuperuser(t, app), numbered("t/%d", 20)...))
	require.Equal(t, 8, seats())

	// a key that the rule denies counts for nothing
	require.Equal(t, map[string]string{"shut/1": "topic_denied"}, one.refused(annToken, "t/1", "t/2", "shut/1"))
	require.Equal(t, 7, seats())

	// at the limit, others may take the place of those that are left out
	require.Empty(t, one.refused(annToken, "t/1", "t/2", "t/3"))
	require.Equal(t, map[string]string{"t/6": code}, one.refused(annToken, "t/3", "t/4", "t/5", "t/6"))
	require.Equal(t, []string{"t/3", "t/4", "t/5"}, one.subscribed())
	require.Equal(t, 8, seats())
	require.Empty(t, one.refused(annToken, "t/1", "t/2"))
	require.Equal(t, 7, seats())

	// what frees up is there for the next request
	require.Empty(t, two.refused(annToken, "t/1", "t/2"))
	require.Equal(t, 8, seats())
	two.disconnect()
	require.Eventually(t, func() bool { return seats() == 6 }, patience, time.Millisecond)

	// a guest who signs in on a connection begins to count
	three := s.connect()
	require.Empty(t, three.refused("", numbered("t/%d", 5)...))
	require.Equal(t, 6, seats())
	require.Equal(t, map[string]string{"t/2": code, "t/3": code, "t/4": code}, three.refused(annToken, numbered("t/%d", 5)...))
	require.Equal(t, []string{"t/0", "t/1"}, three.subscribed())
	require.Equal(t, 8, seats())

	// what is revoked does not count
	ann.RefreshTokenKey()
	require.NoError(t, app.Save(ann))
	require.Empty(t, three.refused(mustToken(t, ann), "t/0", "t/1", "mine/1")["t/0"])
	require.Eventually(t, func() bool { return seats() <= 8 && topics.Settled(app) }, patience, time.Millisecond)
	require.NoError(t, app.Delete(ann))
	require.Eventually(t, func() bool {
		n, guarded := topics.Seated(app)
		return topics.Settled(app) && n == seats() && n == guarded-20 // the superuser's
	}, patience, time.Millisecond)
}

func TestConnectionsOfAnAccount(t *testing.T) {
	s, app := limitedApp(t, topics.Config{MaxConnectionsPerAccount: 2})
	_, token := newUser(t, app, "ann")
	const code = "account_connections_exceeded"

	conns := make([]*stream, 4)
	for i := range conns {
		conns[i] = s.connect()
		require.Empty(t, conns[i].refused(token, "PB_CONNECT"), "only those with topics count")
	}
	require.Empty(t, conns[0].refused(token, "t/1"))
	require.Empty(t, conns[1].refused(token, "t/1", "t/2"))
	require.Equal(t, map[string]string{"t/1": code, "t/3": code}, conns[2].refused(token, "t/1", "t/3", "users/*"))
	require.Contains(t, conns[2].subscribed(), "users/*")
	require.Empty(t, conns[1].refused(token, "t/1", "t/2", "t/3"))
	require.Equal(t, map[string]string{"shut/1": code}, conns[3].refused(token, "shut/1"), "without asking the rule")

	require.Empty(t, conns[0].refused(token))
	require.Empty(t, conns[3].refused(token, "t/4"))
	require.Empty(t, conns[2].refused(token, "t/1"), "told already")
	conns[1].disconnect()
	require.Eventually(t, func() bool { _, n, _ := topics.Seats(app); return n == 1 }, patience, time.Millisecond)
	require.Empty(t, conns[2].refused(token, "t/1"))
	require.Equal(t, []string{"t/1"}, conns[2].subscribed())
}

// Clients that Go code has registered count like others when an account uses
// them, and those that are gone count no more when it matters.
func TestLimitsHoldForForeignClients(t *testing.T) {
	s, app := limitedApp(t, topics.Config{MaxSubscriptionsPerAccount: 4, MaxKeysPerTopic: 2, MaxConnectionsPerAccount: 2})
	_, token := newUser(t, app, "ann")
	seats := func() int { n, _, _ := topics.Seats(app); return n }
	subscribe := func(c subscriptions.Client, keys ...string) {
		t.Helper()
		(&stream{s: s, id: c.Id()}).mustSubscribe(token, keys...)
	}

	one, two := newForeign(app), newForeign(app)
	subscribe(one, "t/1?1", "t/1?2", "t/1?3")
	require.Equal(t, 2, seats())
	require.Contains(t, string((<-one.Channel()).Data), "topic_subscriptions_exceeded")
	subscribe(one, "t/1?3", "t/1?2", "t/1?1") // in any order
	require.Equal(t, 2, seats())
	require.True(t, one.HasSubscription("t/1?1"))
	<-one.Channel()
	subscribe(two, "t/2", "t/3", "t/4")
	require.Equal(t, 4, seats())
	require.Contains(t, string((<-two.Channel()).Data), "account_subscriptions_exceeded")

	conn := s.connect()
	require.Equal(t, map[string]string{"t/1": "account_connections_exceeded"}, conn.refused(token, "t/1"))
	app.SubscriptionsBroker().Unregister(one.Id())
	require.Empty(t, conn.refused(token, "t/1", "t/2"))
	require.Equal(t, []string{"t/1", "t/2"}, conn.subscribed())
	subscribe(two, "t/5", "t/6")
	require.Equal(t, 4, seats())
	require.True(t, two.HasSubscription("t/6"))
	subscribe(two)
	require.Equal(t, 2, seats())
}

// openStream connects from an address, and returns nil if that is refused.
func (s *server) openStream(address string) (*http.Response, context.CancelFunc) {
	s.t.Helper()

	ctx, cancel := context.WithCancel(context.Background())
	s.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/api/realtime", nil)
	require.NoError(s.t, err)
	req.Header.Set("X-Client-IP", address)
	res, err := s.http.Do(req)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { cancel(); _ = res.Body.Close() })
	return res, cancel
}

func TestConnectionsOfAnAddress(t *testing.T) {
	app := newApp(t, topics.Config{MaxConnectionsPerAddress: 2})
	s := serve(t, app)
	counted := func() int { _, _, n := topics.Seats(app); return n }

	// without a header that is trusted, this peer is nobody
	for range 4 {
		s.connect().disconnect()
	}
	require.Zero(t, counted())

	app.Settings().TrustedProxy.Headers = []string{"X-Client-IP"}
	_, first := s.openStream("203.0.113.7")
	_, _ = s.openStream("203.0.113.7")
	res, _ := s.openStream("203.0.113.7")
	require.Equal(t, http.StatusTooManyRequests, res.StatusCode)
	raw, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	require.Equal(t, "address_connections_exceeded", reply{body: string(raw)}.code("address"))
	require.True(t, json.Valid(raw))
	require.EqualValues(t, 1, topics.From(app).Stats().ConnectionsRefused)

	// others are let in; IPv6 counts by the network
	res, _ = s.openStream("203.0.113.8")
	require.Equal(t, http.StatusOK, res.StatusCode)
	for i, status := range []int{200, 200, 429} {
		res, _ = s.openStream(fmt.Sprintf("2001:db8:1:2::%d", i))
		require.Equal(t, status, res.StatusCode)
	}
	require.Equal(t, 5, counted())

	first()
	require.Eventually(t, func() bool { return counted() == 4 }, patience, time.Millisecond)
	res, _ = s.openStream("203.0.113.7")
	require.Equal(t, http.StatusOK, res.StatusCode)
	require.Equal(t, 5, counted())
}

// Whatever happens at once, what is counted is what there is.
func TestCountingIsExact(t *testing.T) {
	const limit, perConnection = 25, 8
	s, app := limitedApp(t, topics.Config{MaxSubscriptionsPerAccount: limit, MaxConnectionsPerAccount: 5, MaxKeysPerTopic: 2, MaxSubscriptions: perConnection})
	gate := define(t, app, map[string]any{"pattern": "gate/{n}", "subscribeRule": ""})
	random := topics.NewRand(t)
	var tokens []string
	for _, name := range []string{"ann", "bob"} {
		_, token := newUser(t, app, name)
		tokens = append(tokens, token)
	}

	var all sync.WaitGroup
	stop := make(chan struct{})
	for range 8 {
		seed := random.Uint64()
		all.Go(func() {
			pick := func(n int) int { seed = seed*6364136223846793005 + 1442695040888963407; return int(seed>>33) % n }
			for {
				select {
				case <-stop:
					return
				default:
				}
				conn, token := s.connect(), tokens[pick(2)]
				for i := range 1 + pick(4) {
					var keys []string
					for range pick(12) {
						keys = append(keys, fmt.Sprintf("%s/%d?%d", []string{"t", "gate", "mine", "shut"}[pick(4)], pick(4), pick(3)))
					}
					as := token
					if i == 0 && pick(2) == 0 {
						as = ""
					}
					conn.mustSubscribe(as, keys...)
				}
				if pick(2) == 0 {
					found, err := app.SubscriptionsBroker().ClientById(conn.id)
					if err == nil {
						found.Unsubscribe(fmt.Sprintf("t/%d?%d", pick(4), pick(3)))
					}
				}
				conn.disconnect()
			}
		})
	}
	foreign := newForeign(app)
	all.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-foreign.Channel():
			}
		}
	})
	for range 2 {
		all.Go(func() { // two requests of one foreign client at once
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				(&stream{s: s, id: foreign.Id()}).mustSubscribe(tokens[0], fmt.Sprintf("t/%d", i%3), fmt.Sprintf("gate/%d", i%2), "mine/1")
			}
		})
	}

	end := time.Now().Add(2 * time.Second)
	for i := 0; time.Now().Before(end); i++ {
		gate.Set("subscribeRule", []any{"", nil, "@request.query.x = ''", "@request.auth.id != ''"}[i%4])
		require.NoError(t, app.Save(gate))
		n, connections, _ := topics.Seats(app)
		require.LessOrEqual(t, n, 2*limit+3, "two requests of the foreign client may swap the same keys")
		require.LessOrEqual(t, connections, 2*5)
	}
	close(stop)
	all.Wait()

	(&stream{s: s, id: foreign.Id()}).mustSubscribe(tokens[0])
	require.Eventually(t, func() bool {
		n, connections, _ := topics.Seats(app)
		return n == 0 && connections == 0 && topics.Grants(app) == 0
	}, patience, time.Millisecond)
}
