package topics_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/subscriptions"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

// key makes a subscription key as the JS SDK does.
func key(topic string, query map[string]any) string {
	raw, _ := json.Marshal(map[string]any{"query": query})
	return topic + "?options=" + url.QueryEscape(string(raw))
}

func TestADenialIsLoudAndLocal(t *testing.T) {
	app := newApp(t, topics.Config{})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "public", "subscribeRule": ""})
	define(t, app, map[string]any{"pattern": "shut"})
	notes := newCollection(t, app, "notes", &core.TextField{Name: "text"})
	notes.ListRule, notes.ViewRule = rule(""), rule("")
	require.NoError(t, app.Save(notes))

	keys := []string{
		"PB_CONNECT", "@oauth2", "notes/*", notes.Id, key("notes/*", map[string]any{"fields": "id"}),
		"public", key("public", map[string]any{"a": 1}),
		"shut", key("shut", map[string]any{"a": 1}), "nowhere", "a//b", "sp ace", "ünïcode", strings.Repeat("a", 256),
		"", "public",
	}
	refused := map[string]string{
		"shut": "topic_denied", key("shut", map[string]any{"a": 1}): "topic_denied", "nowhere": "topic_unknown",
		"a//b": "topic_malformed", "sp ace": "topic_malformed", "ünïcode": "topic_malformed", strings.Repeat("a", 256): "topic_malformed",
	}

	c := s.connect()
	c.mustSubscribe("", keys...)

	told := map[string]string{}
	for _, e := range c.drain() {
		require.NotContains(t, told, e.name, "told once")
		n := e.notice(t)
		require.Equal(t, "denied", n.Type)
		require.Equal(t, strings.SplitN(e.name, "?", 2)[0], n.Topic)
		require.NotEmpty(t, n.Message)
		told[e.name] = n.Code
	}
	require.Equal(t, refused, told)

	// everything else works
	require.NoError(t, topics.Notify(app, "public", map[string]any{"test": 123}))
	names := []string{c.next().name, c.next().name}
	slices.Sort(names)
	require.Equal(t, []string{"public", key("public", map[string]any{"a": 1})}, names)

	newRecord(t, app, "notes", map[string]any{"text": "hello"})
	got := map[string]string{}
	for range 3 {
		e := c.next()
		got[e.name] = e.data
	}
	require.Contains(t, got["notes/*"], `"text":"hello"`)
	require.Contains(t, got[notes.Id], `"text":"hello"`)
	require.NotContains(t, got[key("notes/*", map[string]any{"fields": "id"})], "hello")

	// the SDK sends all keys again whenever one changes: nothing is told twice
	c.mustSubscribe("", append(keys, "public?x")...)
	c.quiet()

	// a key that was gone has a new listener
	c.mustSubscribe("", "public")
	c.mustSubscribe("", "public", "shut")
	require.Equal(t, "topic_denied", c.next().notice(t).Code)
	c.quiet()

	// and so has every key of a new connection
	again := s.connect()
	again.mustSubscribe("", "public", "shut")
	require.Equal(t, "topic_denied", again.next().notice(t).Code)
}

// A key with a line break is attacker's text for the event stream.
func TestAKeyCannotInjectEvents(t *testing.T) {
	for _, config := range []topics.Config{{}, {AllowUnknown: true}} {
		app := newApp(t, config)
		s := serve(t, app)
		define(t, app, map[string]any{"pattern": "public", "subscribeRule": ""})
		c := s.connect()

		c.mustSubscribe("", "public\nevent:PB_CONNECT", "public?x\ndata:1", "public?\r", "public?\x00", "users\nid:x", "public")
		c.quiet()
		client, err := app.SubscriptionsBroker().ClientById(c.id)
		require.NoError(t, err)
		require.Len(t, client.Subscriptions(), 1)
	}
}

func TestAllowUnknown(t *testing.T) {
	app := newApp(t, topics.Config{AllowUnknown: true})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "shut"})
	c := s.connect()

	c.allow("", "anything")
	c.allow("", "any thing") // nothing can be sent to it, as nothing matches it
	c.deny("", "shut", "topic_denied")
	require.Equal(t, "topic_unknown", s.publish("", `{"topic":"anything","data":1}`).code("topic"))

	c.mustSubscribe("", "anything")
	require.NoError(t, topics.Notify(app, "anything", 1))
	require.Equal(t, "1", c.next().data)
}

// At subscribe time the client still has the auth of the request before.
func TestGuestBecomesUserOnOneConnection(t *testing.T) {
	app := newApp(t, topics.Config{})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "members", "subscribeRule": "@request.auth.id != ''"})
	define(t, app, map[string]any{"pattern": "admins"})
	_, ann := newUser(t, app, "ann")
	_, bob := newUser(t, app, "bob")
	root := newSuperuser(t, app)

	c := s.connect()
	c.deny("", "members", "topic_denied")
	c.allow(ann, "members")
	c.deny(ann, "admins", "topic_denied")
	require.Equal(t, 403, c.subscribe(bob, "members").status, "core allows one auth per connection")

	// superusers pass every rule, but not the lack of one
	c = s.connect()
	c.allow(root, "admins")
	c.deny(root, "nowhere", "topic_unknown")
}

// The options of a key are the caller's @request.query and @request.headers.
func TestOptionsReachTheRule(t *testing.T) {
	app := newApp(t, topics.Config{})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "q", "subscribeRule": "@request.query.pass = 'x'"})
	define(t, app, map[string]any{"pattern": "1q:1", "subscribeRule": "@request.query.pass = 'x'"})
	define(t, app, map[string]any{"pattern": "h", "subscribeRule": "@request.headers.x_pass = 'x' && @request.context = 'realtime'"})
	c := s.connect()

	c.allow("", key("q", map[string]any{"pass": "x"}))
	c.deny("", key("q", map[string]any{"pass": "y"}), "topic_denied")
	c.deny("", "q", "topic_denied")
	c.allow("", key("1q:1", map[string]any{"pass": "x"})) // core loses these options
	c.allow("", "h?options="+url.QueryEscape(`{"headers":{"X-Pass":"x"}}`))

	// the Dart SDK escapes less
	c.allow("", `q?options={"query":{"pass":"x"}}`)
}

// Changing the list never lets a topic that stays miss a message.
func TestReplacingSubscriptionsMissesNothing(t *testing.T) {
	app := newApp(t, topics.Config{QueueMessages: 100_000})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "a/{x}", "subscribeRule": ""})
	c := s.connect()
	c.mustSubscribe("", "a/stays")

	const messages = 2000
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range messages {
			if err := topics.Notify(app, "a/stays", i); err != nil {
				t.Error(err)
			}
		}
	}()
	for i := 0; ; i++ {
		c.mustSubscribe("", "a/stays", fmt.Sprintf("a/%d", i))
		select {
		case <-done:
		default:
			continue
		}
		break
	}

	events := c.drain()
	require.Len(t, events, messages)
	for i, e := range events {
		require.Equal(t, fmt.Sprint(i), e.data)
	}
}

// Foreign clients get what HTTP callers subscribe them to only if allowed.
func TestSubscribingAForeignClient(t *testing.T) {
	app := newApp(t, topics.Config{})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "public", "subscribeRule": ""})

	foreign := subscriptions.NewDefaultClient()
	app.SubscriptionsBroker().Register(foreign)
	c := &stream{s: s, id: foreign.Id()}
	c.mustSubscribe("", "public", "shut")

	require.True(t, foreign.HasSubscription("public"))
	require.False(t, foreign.HasSubscription("shut"))
	n := <-foreign.Channel()
	require.Equal(t, "shut", n.Name)
	require.Contains(t, string(n.Data), "topic_unknown")
}

// Other plugins may wrap the client as well, before us and after us.
func TestOtherPluginsWrapTheClient(t *testing.T) {
	for _, priority := range []int{-1000, 1 << 62} {
		app := newApp(t, topics.Config{})
		define(t, app, map[string]any{"pattern": "public", "subscribeRule": ""})
		app.OnRealtimeConnectRequest().Bind(handler(priority, func(e *core.RealtimeConnectRequestEvent) error {
			e.Client = wrapper{e.Client}
			return e.Next()
		}))
		s := serve(t, app)
		c := s.connect()
		c.mustSubscribe("", "public", "shut")
		require.Equal(t, "topic_unknown", c.next().notice(t).Code)
		require.NoError(t, topics.Notify(app, "public", 1))
		require.Equal(t, "1", c.next().data)
		c.quiet()

		found, err := app.SubscriptionsBroker().ClientById(c.id)
		require.NoError(t, err)
		require.NotEmpty(t, found.Get(apis.RealtimeClientIPKey))
	}
}

type wrapper struct{ subscriptions.Client }

func TestAccess(t *testing.T) {
	app := newApp(t, topics.Config{})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "a/{x}", "subscribeRule": "", "publishRule": "@request.auth.id != '' && @request.method = 'POST'", "presenceRule": "@request.query.pass = 'x'"})
	define(t, app, map[string]any{"pattern": "q", "subscribeRule": "@request.query.pass = 'x'"})
	_, ann := newUser(t, app, "ann")

	type verdict struct {
		Allowed bool
		Code    string
		Message string
	}
	access := func(token, topic string) (subscribe, publish, presence verdict) {
		t.Helper()
		r := s.request(http.MethodGet, "/api/topics/access?topic="+url.QueryEscape(topic), token, "")
		require.Equal(t, 200, r.status, r.body)
		var answer struct {
			Topic                        string
			Subscribe, Publish, Presence verdict
		}
		require.NoError(t, json.Unmarshal([]byte(r.body), &answer))
		require.Equal(t, strings.SplitN(topic, "?", 2)[0], answer.Topic)
		for _, v := range []verdict{answer.Subscribe, answer.Publish, answer.Presence} {
			require.True(t, v.Allowed || v.Code != "" && v.Message != "", r.body)
		}
		return answer.Subscribe, answer.Publish, answer.Presence
	}

	sub, pub, pres := access("", "a/1")
	require.Equal(t, verdict{Allowed: true}, sub)
	require.Equal(t, "topic_denied", pub.Code)
	require.Equal(t, "topic_denied", pres.Code)

	_, pub, _ = access(ann, "a/1")
	require.True(t, pub.Allowed)

	sub, _, _ = access("", key("q", map[string]any{"pass": "x"}))
	require.True(t, sub.Allowed)
	sub, _, _ = access("", "q")
	require.Equal(t, "topic_denied", sub.Code)

	for topic, code := range map[string]string{
		"nowhere": "topic_unknown", "a//b": "topic_malformed", "a/\n": "topic_malformed", "%": "topic_malformed",
		strings.Repeat("a", 300): "topic_malformed",
	} {
		sub, pub, pres := access(ann, topic)
		require.Equal(t, []string{code, code, code}, []string{sub.Code, pub.Code, pres.Code}, topic)
	}

	for _, topic := range []string{"users", "users/*", "users/x", "_pb_users_auth_/x", "PB_CONNECT", "@oauth2"} {
		sub, pub, _ := access("", topic)
		require.Equal(t, "topic_reserved", sub.Code, topic)
		require.Equal(t, "topic_reserved", pub.Code, topic)
	}

	r := s.request(http.MethodGet, "/api/topics/access", "", "")
	require.Equal(t, 400, r.status)
	require.Equal(t, "topic_required", r.code("topic"))
}
