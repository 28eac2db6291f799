package topics_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/pocketbase/pocketbase/tools/subscriptions"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

// lockCheck is called by everything that the plugin calls: it takes all locks
// and uses the plugin, which a lock that the plugin holds would not let it.
type lockCheck struct {
	t      *testing.T
	app    core.App
	inside atomic.Int64 // the check's own calls are not checked
	failed atomic.Bool

	mu   sync.Mutex
	seen map[string]int
}

const lockPatience = 3 * time.Second

func (c *lockCheck) here(what string) {
	c.mu.Lock()
	c.seen[what]++
	often := c.seen[what] > 30
	c.mu.Unlock()
	if often || c.failed.Load() || !c.inside.CompareAndSwap(0, 1) {
		return
	}
	defer c.inside.Store(0)

	if held := topics.TakeLocks(c.app, lockPatience); held != "" {
		c.failed.Store(true)
		c.t.Errorf("%s was called with the lock held: %s", what, held)
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		p := topics.From(c.app)
		p.Stats()
		_ = p.Notify(c.app, "checked", 1)
		_, _ = p.Presence(c.app, "checked")
		_, _ = p.PresenceCount(c.app, "room/x")
		_, _ = p.History(c.app, "checked", topics.HistoryOptions{})
		p.OnJoin()
	}()
	select {
	case <-done:
	case <-time.After(lockPatience):
		c.failed.Store(true)
		c.t.Errorf("%s was called in a way that the plugin cannot be used", what)
	}
}

// Enabled and the others implement [slog.Handler].
func (c *lockCheck) Enabled(context.Context, slog.Level) bool { return true }
func (c *lockCheck) WithAttrs([]slog.Attr) slog.Handler       { return c }
func (c *lockCheck) WithGroup(string) slog.Handler            { return c }
func (c *lockCheck) Handle(_ context.Context, r slog.Record) error {
	c.here("the log: " + r.Message)
	return nil
}

// checkedClient is another plugin's client, or one of the app's own.
type checkedClient struct {
	subscriptions.Client
	c    *lockCheck
	kind string
}

func (c *checkedClient) Subscribe(keys ...string) {
	c.c.here(c.kind + ": Subscribe")
	c.Client.Subscribe(keys...)
}

func (c *checkedClient) Unsubscribe(keys ...string) {
	c.c.here(c.kind + ": Unsubscribe")
	c.Client.Unsubscribe(keys...)
}

func (c *checkedClient) Subscriptions(prefixes ...string) map[string]subscriptions.SubscriptionOptions {
	c.c.here(c.kind + ": Subscriptions")
	return c.Client.Subscriptions(prefixes...)
}

//lint:ignore ST1003 the interface is PocketBase's
func (c *checkedClient) Id() string { //revive:disable-line:var-naming
	c.c.here(c.kind + ": Id")
	return c.Client.Id()
}

func (c *checkedClient) Get(key string) any {
	c.c.here(c.kind + ": Get")
	return c.Client.Get(key)
}

func (c *checkedClient) IsDiscarded() bool {
	c.c.here(c.kind + ": IsDiscarded")
	return c.Client.IsDiscarded()
}

func (c *checkedClient) Discard() {
	c.c.here(c.kind + ": Discard")
	c.Client.Discard()
}

func (c *checkedClient) Send(m subscriptions.Message) {
	c.c.here(c.kind + ": Send")
	c.Client.Send(m)
}

// No lock is held while PocketBase, the app's code or its log is called,
// whatever the occasion is.
func TestNoLockIsHeldWhileCallingOthers(t *testing.T) {
	config := noSweep()
	config.QueueMessages = 20
	config.QueueBytes = 256 << 10
	config.RecordQueueBytes = 64 << 10
	config.PresenceGrace = 20 * time.Millisecond
	config.LogLines = 10_000
	app := newWorldApp(t, config)
	c := &lockCheck{t: t, app: app, seen: map[string]int{}}
	topics.SetLogger(app.BaseApp, c)

	p := topics.From(app)
	p.OnOccupied().BindFunc(func(e *topics.TopicEvent) error { c.here("OnOccupied"); return e.Next() })
	p.OnVacated().BindFunc(func(e *topics.TopicEvent) error { c.here("OnVacated"); return e.Next() })
	p.OnJoin().BindFunc(func(_ *topics.MemberEvent) error { c.here("OnJoin"); return errors.New("logged") })
	p.OnLeave().BindFunc(func(_ *topics.MemberEvent) error { c.here("OnLeave"); panic("logged") })
	app.OnRecordEnrich().BindFunc(func(e *core.RecordEnrichEvent) error { c.here("OnRecordEnrich"); return e.Next() })
	app.OnRealtimeConnectRequest().Bind(&hook.Handler[*core.RealtimeConnectRequestEvent]{Func: func(e *core.RealtimeConnectRequestEvent) error {
		e.Client = &checkedClient{e.Client, c, "wrapped client"}
		return e.Next()
	}})

	s := serve(t, app)
	_, err := app.FindCollectionByNameOrId("rooms")
	require.NoError(t, err)
	ann, token := newUser(t, app, "ann")
	room := newRecord(t, app, "rooms", map[string]any{"name": "lobby"})
	member := newRecord(t, app, "memberships", map[string]any{"room": room.Id, "user": ann.Id})
	define(t, app, map[string]any{
		"pattern": "room/{id}", "collection": "rooms", "subscribeRule": memRule, "publishRule": memRule, "presenceRule": memRule,
		"presence": true, "presenceFields": "role", "history": 5,
	})
	define(t, app, map[string]any{"pattern": "checked", "subscribeRule": "", "history": 5, "presence": true})
	define(t, app, map[string]any{"pattern": "fast", "subscribeRule": ""})
	topic := "room/" + room.Id
	foreign := &checkedClient{subscriptions.NewDefaultClient(), c, "own client"}
	foreign.Subscribe("fast")
	app.SubscriptionsBroker().Register(foreign)

	// denied, decided, shown
	a := s.connect()
	a.mustSubscribe(token, topic+`?options={"query":{"presence":"true"}}`, topic, "fast", "unknown", "checked")
	found, err := app.SubscriptionsBroker().ClientById(a.id)
	require.NoError(t, err)
	found.Subscribe("fast", "checked?options={}")
	require.NoError(t, topics.Notify(app, topic, "x"))
	s.publish(token, fmt.Sprintf(`{"topic":%q,"data":1}`, topic))
	s.publish("", fmt.Sprintf(`{"topic":%q,"data":1}`, topic))

	// decided anew, and revoked
	ann.Set("role", "other")
	require.NoError(t, app.Save(ann))
	require.NoError(t, topics.Notify(app, topic, "x"))
	require.NoError(t, app.RunInTransaction(func(tx core.App) error {
		if err := topics.Notify(tx, topic, "x"); err != nil {
			return err
		}
		return tx.Delete(member)
	}))
	require.NoError(t, topics.Notify(app, topic, "x"))
	require.Eventually(t, func() bool { return topics.Settled(app) }, patience, time.Millisecond)

	require.NoError(t, topics.Notify(app, "fast", 1))
	<-foreign.Channel()

	// slow: by messages, by record events, of the app's own
	for i := range 2 {
		stalled := s.connectStalled()
		(&stream{s: s, id: stalled.id}).mustSubscribe("", "fast", "checked")
		found, err := app.SubscriptionsBroker().ClientById(stalled.id)
		require.NoError(t, err)
		require.Eventually(t, func() bool {
			if i == 0 {
				require.NoError(t, topics.Notify(app, "fast", strings.Repeat("x", 60<<10)))
			} else {
				found.Send(message("record", `"`+strings.Repeat("x", 60<<10)+`"`))
			}
			_, err := app.SubscriptionsBroker().ClientById(stalled.id)
			return err != nil
		}, patience, time.Microsecond)
	}
	require.Eventually(t, func() bool {
		require.NoError(t, topics.Notify(app, "fast", strings.Repeat("x", 60<<10)))
		return foreign.IsDiscarded()
	}, patience, time.Millisecond)

	// a rule that cannot be evaluated, a rule that goes
	rooms, err := app.FindCollectionByNameOrId("rooms")
	require.NoError(t, err)
	a.disconnect()
	b := s.connect()
	b.mustSubscribe("", "checked", "fast")
	require.NoError(t, app.Delete(mustRule(t, app, "fast")))
	rename(t, app, rooms.Name, "halls")
	b.mustSubscribe(token, topic)
	b.disconnect()
	require.Eventually(t, func() bool { return topics.From(app).Stats().Connections == 0 }, patience, time.Millisecond)
	time.Sleep(2 * config.PresenceGrace)
	require.Eventually(t, func() bool { return topics.From(app).Stats().Members == 0 }, patience, time.Millisecond)

	for _, what := range []string{
		"OnOccupied", "OnVacated", "OnJoin", "OnLeave", "OnRecordEnrich",
		"wrapped client: Subscribe", "wrapped client: Unsubscribe", "wrapped client: Discard", "wrapped client: Get",
		"own client: Send", "own client: Id", "own client: Subscriptions", "own client: Discard",
		"the log: Refused to let a client subscribe to a topic",
		"the log: Refused to let a client publish to a topic",
		"the log: Took a topic back from its subscribers",
		"the log: Closed a realtime connection because its client did not keep up (slow consumer)",
		"the log: Unregistered a realtime client of the app's own code because it did not keep up (slow consumer)",
		"the log: A handler of a presence hook has failed",
	} {
		require.Eventually(t, func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.seen[what] > 0
		}, patience, time.Millisecond, "the occasion has come: %s", what)
	}
}

func mustRule(t testing.TB, app core.App, pattern string) *core.Record {
	t.Helper()
	record, err := app.FindFirstRecordByData("_topics", "pattern", pattern)
	require.NoError(t, err)
	return record
}
