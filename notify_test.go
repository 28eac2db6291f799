package topics_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/pocketbase/pocketbase/tools/subscriptions"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

func handler[T hook.Resolver](priority int, fn func(T) error) *hook.Handler[T] {
	return &hook.Handler[T]{Func: fn, Priority: priority}
}

func TestExactlyTheMarshalledJSONArrives(t *testing.T) {
	app := newApp(t, topics.Config{})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "example", "subscribeRule": ""})
	c := s.connect()
	withOptions := key("example", map[string]any{"any": "thing"})
	c.mustSubscribe("", "example", withOptions)

	for _, data := range []any{
		map[string]any{"test": 123},
		nil, 0, false, "", "line\nbreak\r",
		[]int{},
		"<b>&ünïcode\u2028</b>",
		json.RawMessage("{ \"b\" : 1,\n\t\"a\" : 12345678901234567890 }"),
		struct {
			Topics int `json:"topics"`
		}{1},
		map[string]any{"deep": map[string]any{"@topics": 1}},
		[]any{"@topics"},
		`"@topics"`,
	} {
		// <, > and & need no escape outside of HTML
		var want strings.Builder
		encoder := json.NewEncoder(&want)
		encoder.SetEscapeHTML(false)
		require.NoError(t, encoder.Encode(data))
		require.NoError(t, topics.Notify(app, "example", data))
		for range 2 {
			e := c.next()
			require.Equal(t, strings.TrimSuffix(want.String(), "\n"), e.data)
			require.Equal(t, c.id, e.id, "as core writes it")
		}
	}
}

func TestNotifyRefuses(t *testing.T) {
	app := newApp(t, topics.Config{MaxPayload: 100})
	newCollection(t, app, "rooms")

	require.NoError(t, topics.Notify(app, "fits", strings.Repeat("x", 98)))

	for name, tc := range map[string]struct {
		topic string
		data  any
		want  error
	}{
		"empty topic":     {"", 1, topics.ErrMalformedTopic},
		"malformed topic": {"a//b", 1, topics.ErrMalformedTopic},
		"key":             {"a?options={}", 1, topics.ErrMalformedTopic},
		"line break":      {"a\nevent:b", 1, topics.ErrMalformedTopic},
		"collection":      {"rooms", 1, topics.ErrReservedTopic},
		"record":          {"rooms/1", 1, topics.ErrReservedTopic},
		"connect":         {"PB_CONNECT", 1, topics.ErrReservedTopic},
		"oauth2":          {"@oauth2", 1, topics.ErrReservedTopic},
		"too large":       {"a", strings.Repeat("x", 99), topics.ErrPayloadTooLarge},
		"no JSON":         {"a", func() {}, topics.ErrInvalidPayload},
		"no number":       {"a", math.Inf(1), topics.ErrInvalidPayload},
		"broken raw":      {"a", json.RawMessage("{"), topics.ErrInvalidPayload},
		"bad UTF-8":       {"a", json.RawMessage("\"\xff\""), topics.ErrInvalidPayload},
		"control":         {"a", map[string]any{"@topics": 1}, topics.ErrReservedPayload},
		"hidden control":  {"a", json.RawMessage(`{"a":1,"\u0040topics":1}`), topics.ErrReservedPayload},
		"control escape":  {"a", json.RawMessage(`{"@t\u006fpics":1}`), topics.ErrReservedPayload},
		"duplicate":       {"a", json.RawMessage(`{"a":1,"a":2}`), topics.ErrDuplicateKey},
		"deep duplicate":  {"a", []any{map[string]any{"x": json.RawMessage(`[{"a":1,"\u0061":2}]`)}}, topics.ErrDuplicateKey},
		"marshaler":       {"a", map[string]any{"x": twice{}}, topics.ErrDuplicateKey},
		"map of texts":    {"a", map[same]int{1: 1, 2: 2}, topics.ErrDuplicateKey},
		"map of bad UTF8": {"a", map[string]int{"\xff": 1, "\xfe": 2}, topics.ErrDuplicateKey},
	} {
		require.ErrorIs(t, topics.Notify(app, tc.topic, tc.data), tc.want, name)
	}
	require.ErrorIs(t, topics.Notify(nil, "a", 1), topics.ErrNotRegistered)

	for name, tc := range map[string]struct {
		option topics.NotifyOption
		want   error
	}{
		"zero":         {topics.NotifyOption{}, nil},
		"event":        {topics.Event(strings.Repeat("x", 64)), nil},
		"long event":   {topics.Event(strings.Repeat("x", 65)), topics.ErrInvalidEvent},
		"bad event":    {topics.Event("\xff"), topics.ErrInvalidEvent},
		"nobody":       {topics.Except(""), nil},
		"except":       {topics.Except(strings.Repeat("x", 255)), nil},
		"long except":  {topics.Except(strings.Repeat("x", 256)), topics.ErrInvalidExcept},
		"bad except":   {topics.Except("\xff"), topics.ErrInvalidExcept},
		"huge and bad": {topics.Except(strings.Repeat("x", 1<<20)), topics.ErrInvalidExcept},
	} {
		err := topics.Notify(app, "a", 1, topics.Event("first"), tc.option)
		require.ErrorIs(t, err, tc.want, name)
		if err != nil {
			require.Less(t, len(err.Error()), 1000, name)
		}
	}
	require.Less(t, len(topics.Notify(app, strings.Repeat("x", 1<<20), 1).Error()), 1000)
}

// twice writes an object with the same key twice.
type twice struct{}

func (twice) MarshalJSON() ([]byte, error) { return []byte(`{"a":1,"a":2}`), nil }

// same is a key that is always written alike.
type same int

func (same) MarshalText() ([]byte, error) { return []byte("a"), nil }

func TestNotifyAfterTermination(t *testing.T) {
	app := newApp(t, topics.Config{})
	require.NoError(t, app.OnTerminate().Trigger(&core.TerminateEvent{App: app}))
	require.ErrorIs(t, topics.Notify(app, "a", 1), topics.ErrClosed)
}

func TestNotifyInATransaction(t *testing.T) {
	app := newApp(t, topics.Config{})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "a", "subscribeRule": ""})
	c := s.connect()
	c.mustSubscribe("", "a")

	var over core.App
	require.NoError(t, app.RunInTransaction(func(tx core.App) error {
		over = tx
		for i := range 3 {
			require.NoError(t, topics.Notify(tx, "a", i))
		}
		require.ErrorIs(t, topics.Notify(tx, "a//b", 1), topics.ErrMalformedTopic)
		c.quiet()
		return tx.RunInTransaction(func(nested core.App) error { return topics.Notify(nested, "a", 3) })
	}))
	for i := range 4 {
		require.Equal(t, fmt.Sprint(i), c.next().data)
	}

	require.Error(t, app.RunInTransaction(func(tx core.App) error {
		require.NoError(t, topics.Notify(tx, "a", "never"))
		return errors.New("roll back")
	}))
	c.quiet()

	// there is no commit to wait for any more
	require.ErrorIs(t, topics.Notify(over, "a", 1), topics.ErrTransactionOver)
	require.NoError(t, app.RunInTransaction(func(tx core.App) error {
		tx.TxInfo().OnComplete(func(error) error {
			require.ErrorIs(t, topics.Notify(tx, "a", 1), topics.ErrTransactionOver)
			return topics.Notify(app, "a", "after")
		})
		return nil
	}))
	require.Equal(t, `"after"`, c.next().data)

	// of the auxiliary database too
	require.NoError(t, app.AuxRunInTransaction(func(tx core.App) error {
		require.NoError(t, topics.Notify(tx, "a", "aux"))
		c.quiet()
		return nil
	}))
	require.Equal(t, `"aux"`, c.next().data)

	// a record hook in a transaction runs after the commit by itself
	app.OnRecordAfterCreateSuccess("demo2").BindFunc(func(e *core.RecordEvent) error {
		if err := e.Next(); err != nil {
			return err
		}
		return topics.Notify(e.App, "a", "hook")
	})
	require.NoError(t, app.RunInTransaction(func(tx core.App) error {
		record := core.NewRecord(mustCollection(t, tx, "demo2"))
		record.Set("title", "new")
		return tx.Save(record)
	}))
	require.Equal(t, `"hook"`, c.next().data)
}

func mustCollection(t testing.TB, app core.App, name string) *core.Collection {
	t.Helper()
	c, err := app.FindCollectionByNameOrId(name)
	require.NoError(t, err)
	return c
}

func TestExcept(t *testing.T) {
	app := newApp(t, topics.Config{})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "a", "subscribeRule": "", "publishRule": ""})
	one, two := s.connect(), s.connect()
	one.mustSubscribe("", "a")
	two.mustSubscribe("", "a")

	require.NoError(t, topics.Notify(app, "a", 1, topics.Except(one.id)))
	require.Equal(t, "1", two.next().data)
	one.quiet()

	require.Equal(t, 200, s.publish("", fmt.Sprintf(`{"topic":"a","data":2,"except":%q}`, two.id)).status)
	require.Equal(t, "2", one.next().data)
	two.quiet()
}

// All subscribers see the messages of a topic in one order, whoever publishes.
func TestOneOrderPerTopic(t *testing.T) {
	app := newApp(t, topics.Config{QueueMessages: 100_000, QueueBytes: 64 << 20})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "a/{x}", "subscribeRule": ""})

	const publishers, each = 8, 200

	streams := make([]*stream, 10)
	for i := range streams {
		streams[i] = s.connect()
		streams[i].mustSubscribe("", "a/1", "a/2", key("a/1", map[string]any{"i": i}))
	}
	foreign := newForeign(app, "a/1")

	var wg sync.WaitGroup
	for p := range publishers {
		wg.Go(func() {
			for i := range each {
				if err := topics.Notify(app, "a/1", []int{p, i}); err != nil {
					t.Error(err)
				}
				if err := topics.Notify(app, "a/2", []int{p, i}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()

	var order []string
	for _, c := range streams {
		byName := map[string][]string{}
		for _, e := range c.drain() {
			byName[e.name] = append(byName[e.name], e.data)
		}
		if order == nil {
			order = byName["a/1"]
			require.Len(t, order, publishers*each)
		}
		for name, got := range byName {
			require.Len(t, got, publishers*each)
			if strings.HasPrefix(name, "a/1") {
				require.Equal(t, order, got)
			}
		}
	}
	for _, want := range order {
		require.Equal(t, want, string((<-foreign.Channel()).Data))
	}
}

func newForeign(app core.App, keys ...string) *subscriptions.DefaultClient {
	c := subscriptions.NewDefaultClient()
	c.Subscribe(keys...)
	app.SubscriptionsBroker().Register(c)
	return c
}

// Clients that Go code subscribed, and clients of other types, are reached.
func TestClientsOfGoCodeAreReached(t *testing.T) {
	app := newApp(t, topics.Config{})
	s := serve(t, app)

	c := s.connect()
	found, err := app.SubscriptionsBroker().ClientById(c.id)
	require.NoError(t, err)
	found.Subscribe("a", "a?options={}")
	found.Unsubscribe("a?options={}")
	foreign := newForeign(app, "a", key("a", map[string]any{"x": 1}), "ab")
	stalled := newForeign(app, "a") // nobody reads it

	for i := range 3 {
		require.NoError(t, topics.Notify(app, "a", i, topics.Except("nobody")))
		require.Equal(t, "a", c.peek(fmt.Sprint(i)).name)
		names := map[string]bool{}
		for range 2 {
			m := <-foreign.Channel()
			require.Equal(t, fmt.Sprint(i), string(m.Data))
			names[m.Name] = true
		}
		require.Len(t, names, 2)
	}
	require.NoError(t, topics.Notify(app, "a", 9, topics.Except(foreign.Id())))
	require.Equal(t, "9", c.next().data)
	for i := range 3 {
		require.Equal(t, fmt.Sprint(i), string((<-stalled.Channel()).Data))
	}
	require.Equal(t, "9", string((<-stalled.Channel()).Data))

	found.Unsubscribe()
	require.NoError(t, topics.Notify(app, "a", 10, topics.Except(foreign.Id())))
	c.quiet()
}

func (c *stream) peek(data string) event {
	c.s.t.Helper()
	e := c.next()
	require.Equal(c.s.t, data, e.data)
	return e
}

// A foreign client that never reads is unregistered, and holds up nobody.
func TestSlowForeignClient(t *testing.T) {
	app := newApp(t, topics.Config{QueueMessages: 10})
	stalled := newForeign(app, "a")
	reader := newForeign(app, "a")

	for i := range 50 {
		require.NoError(t, topics.Notify(app, "a", i))
		require.Equal(t, fmt.Sprint(i), string((<-reader.Channel()).Data))
	}
	require.Eventually(t, func() bool {
		_, err := app.SubscriptionsBroker().ClientById(stalled.Id())
		return err != nil && stalled.IsDiscarded()
	}, patience, 1e6)
	require.False(t, reader.IsDiscarded())
}
