package topics_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/subscriptions"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

// colons are topics that url.Parse refuses, among others.
var colons = []string{"plain", "chat_room:42", "42:chat", "@me:1", "~x:1", ":42", "room/1:2", "a:b"}

func (s *server) access(key, token string) (subscribe, presence string) {
	s.t.Helper()

	type verdict struct {
		Allowed bool
		Code    string
	}
	var answer struct{ Subscribe, Presence verdict }
	r := s.request(http.MethodGet, "/api/topics/access?topic="+url.QueryEscape(key), token, "")
	require.NoError(s.t, json.Unmarshal([]byte(r.body), &answer), r.body)
	require.Equal(s.t, answer.Subscribe.Code == "", answer.Subscribe.Allowed)
	return answer.Subscribe.Code, answer.Presence.Code
}

// Options mean the same for every valid topic.
func TestOptionsOfEveryTopic(t *testing.T) {
	app := newApp(t, topics.Config{PresenceGrace: -1})
	s := serve(t, app)
	for _, pattern := range []string{"{a}", "{a}/{b}"} {
		define(t, app, map[string]any{
			"pattern": pattern, "publishRule": "", "history": 5, "presence": true,
			"subscribeRule": "@request.query.secret = 'x' || @request.headers.x_secret = 'x' || @request.context != 'realtime'",
			"presenceRule":  "@request.query.secret = 'x' || @request.context != 'realtime'",
		})
	}

	for _, topic := range colons {
		t.Run(topic, func(t *testing.T) {
			c := s.connect()
			require.NoError(t, topics.Notify(app, topic, "kept"))

			all := key(topic, map[string]any{"secret": "x", "presence": true, "replay": 1, "state": map[string]any{"n": 1}, "resume": "r"})
			c.mustSubscribe("", all)
			var types []string
			for range 3 {
				e := c.next()
				require.Equal(t, all, e.name)
				var envelope struct {
					Type    string
					Members []map[string]any
				}
				require.NoError(t, json.Unmarshal([]byte(e.data), &envelope))
				types = append(types, envelope.Type)
				if envelope.Type == "presence" {
					require.Equal(t, map[string]any{"n": 1.0}, envelope.Members[0]["state"])
				}
			}
			require.ElementsMatch(t, []string{"ready", "presence", "message"}, types)
			c.mustSubscribe("")

			c.deny("", topic, "topic_denied")
			c.allow("", topic+"?options="+url.QueryEscape(`{"headers":{"X-Secret":"x"}}`))
			for _, bad := range []string{
				key(topic, map[string]any{"secret": "x", "replay": -1}),
				key(topic, map[string]any{"secret": "x", "envelope": "maybe"}),
				key(topic, map[string]any{"secret": "x", "envelope": []string{"true"}}),
				key(topic, map[string]any{"secret": "x", "presence": map[string]any{}}),
				key(topic, map[string]any{"secret": "x", "state": 1}),
				topic + "?options=" + url.QueryEscape(`{"query":`),
				topic + "?options=" + url.QueryEscape(`{"query":[]}`),
				topic + "?options=%zz",
				topic + "?options={}#x",
				key(topic, map[string]any{"secret": "x"}) + "&options=%7B%7D",
			} {
				c.deny("", bad, "topic_options_invalid")
				subscribe, _ := s.access(bad, "")
				require.Equal(t, "topic_options_invalid", subscribe, bad)
			}

			subscribe, presence := s.access(key(topic, map[string]any{"secret": "x"}), "")
			require.Empty(t, subscribe)
			require.Empty(t, presence)
			subscribe, presence = s.access(topic, "")
			require.Equal(t, "topic_denied", subscribe)
			require.Equal(t, "topic_denied", presence)

			// Go code subscribes a client of a connection
			client, err := app.SubscriptionsBroker().ClientById(c.id)
			require.NoError(t, err)
			enveloped := key(topic, map[string]any{"envelope": true})
			client.Subscribe(enveloped)
			require.Contains(t, c.next().data, `"ready"`)
			require.NoError(t, topics.Notify(app, topic, 1))
			require.Contains(t, c.next().data, `"message"`)
			c.disconnect()
		})
	}
}

// The same for clients that Go code has registered, which HTTP requests
// subscribe.
func TestOptionsOfAForeignClient(t *testing.T) {
	app := newApp(t, topics.Config{})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "{a}", "subscribeRule": "@request.query.secret = 'x'"})

	foreign := subscriptions.NewDefaultClient()
	app.SubscriptionsBroker().Register(foreign)
	defer app.SubscriptionsBroker().Unregister(foreign.Id())
	good, bad := key("chat_room:42", map[string]any{"secret": "x"}), key("chat_room:42", map[string]any{"secret": "x", "replay": "no"})
	c := &stream{s: s, id: foreign.Id()}
	c.mustSubscribe("", good, bad)
	select {
	case m := <-foreign.Channel():
		require.Equal(t, bad, m.Name)
		require.Contains(t, string(m.Data), "topic_options_invalid")
	case <-time.After(patience):
		t.Fatal("no denial came")
	}
	require.True(t, foreign.HasSubscription(good))
	require.False(t, foreign.HasSubscription(bad))
}

// Options of record subscriptions do nothing for a topic, unless its rule reads
// them.
func TestOptionsThatWouldDoNothing(t *testing.T) {
	app := newApp(t, topics.Config{})
	s := serve(t, app)
	newCollection(t, app, "rooms", &core.TextField{Name: "name"})
	rooms, err := app.FindCollectionByNameOrId("rooms")
	require.NoError(t, err)
	rooms.ViewRule = rule("@request.query.filter = name")
	require.NoError(t, app.Save(rooms))
	room := newRecord(t, app, "rooms", map[string]any{"name": "x"})

	define(t, app, map[string]any{"pattern": "plain", "subscribeRule": ""})
	define(t, app, map[string]any{"pattern": "reads", "subscribeRule": "@request.query.filter = 'x'"})
	define(t, app, map[string]any{"pattern": "other", "subscribeRule": "@request.query.filters = '' && @request.query.a.filter = ''"})
	define(t, app, map[string]any{"pattern": "isset", "subscribeRule": "@request.query.sort:isset = true"})
	define(t, app, map[string]any{"pattern": "view/{id}", "collection": "rooms", "subscribeRule": "@view"})
	define(t, app, map[string]any{"pattern": "members", "subscribeRule": "", "presenceRule": "@request.query.fields = 'x'", "presence": true})
	define(t, app, map[string]any{"pattern": "shut"})

	c := s.connect()
	for _, tc := range []struct {
		topic, option string
		code          string
	}{
		{"plain", "filter", "topic_options_invalid"},
		{"plain", "expand", "topic_options_invalid"},
		{"plain", "fields", "topic_options_invalid"},
		{"plain", "sort", "topic_options_invalid"},
		{"plain", "page", ""},
		{"plain", "Filter", ""},
		{"reads", "filter", ""},
		{"other", "filter", "topic_options_invalid"},
		{"isset", "sort", ""},
		{"view/" + room.Id, "filter", ""},
		{"members", "fields", "topic_options_invalid"},
		{"shut", "filter", "topic_denied"}, // nothing is told of its rule
		{"nowhere", "filter", "topic_unknown"},
	} {
		k := key(tc.topic, map[string]any{tc.option: "x"})
		subscribe, _ := s.access(k, "")
		require.Equal(t, tc.code, subscribe, k)
		if tc.code == "" {
			c.allow("", k)
			continue
		}
		c.mustSubscribe("", k)
		n := c.next().notice(t)
		require.Equal(t, tc.code, n.Code, k)
		if tc.code == "topic_options_invalid" {
			require.Contains(t, n.Message, "@request.query."+tc.option)
		}
		c.mustSubscribe("")
	}

	// nothing is asked for
	c.allow("", key("plain", map[string]any{"filter": "", "sort": nil}))

	// the rule of the members counts where they are asked for
	c.mustSubscribe("", key("members", map[string]any{"fields": "x", "presence": true}))
	require.Contains(t, c.next().data, `"ready"`)
}

// codeIn returns the code of a notice, in an envelope or not.
func codeIn(data string) string {
	_, rest, _ := strings.Cut(data, `"code":"`)
	code, _, _ := strings.Cut(rest, `"`)
	return code
}

// A key that is too long for PocketBase is refused alone.
func TestLongKeys(t *testing.T) {
	app := newApp(t, topics.Config{PresenceGrace: -1, QueueBytes: 256 << 10})
	keepLogs(app)
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "room/{id...}", "subscribeRule": "", "presence": true})
	notes := newCollection(t, app, "notes", &core.TextField{Name: "text"})
	notes.ListRule, notes.ViewRule = rule(""), rule("")
	require.NoError(t, app.Save(notes))

	state := func(text string) string {
		raw, err := json.Marshal(map[string]any{"query": map[string]any{"state": map[string]any{"a": text}}})
		require.NoError(t, err)
		return "?options=" + strings.ReplaceAll(url.QueryEscape(string(raw)), "+", "%20")
	}
	chinese := "room/1" + state(strings.Repeat("汉", 823/3))
	require.Greater(t, len(chinese), 2500)
	long := map[string]string{
		chinese: "topic_options_too_long",
		"room/" + strings.Repeat("a", 250) + key("", map[string]any{"resume": strings.Repeat("+", 128), "a": strings.Repeat("+", 700)}): "topic_options_too_long",
		"room/2" + state(strings.Repeat("x", 20<<10)): "topic_options_too_long",
		"error" + state(strings.Repeat("x", 3000)):    "topic_name_reserved",
		"nowhere" + state(strings.Repeat("x", 3000)):  "topic_options_too_long",
	}
	keys := []string{"room/1", "notes/*"}
	for k := range long {
		require.Greater(t, len(k), 2500)
		subscribe, _ := s.access(k, "")
		require.Equal(t, long[k], subscribe)
		keys = append(keys, k)
	}

	c := s.connect()
	c.mustSubscribe("", keys...)
	told := map[string]string{}
	for _, e := range c.drain() {
		told[e.name] = codeIn(e.data)
	}
	require.Equal(t, long, told)
	require.Positive(t, topics.From(app).Stats().SubscriptionsRefused)

	c.mustSubscribe("", append(keys, "room/3")...) // nothing is told twice
	c.quiet()
	require.NoError(t, topics.Notify(app, "room/1", 1))
	require.Equal(t, "room/1", c.next().name)
	require.NoError(t, topics.Notify(app, "room/3", 1))
	require.Equal(t, "room/3", c.next().name)
	newRecord(t, app, "notes", map[string]any{"text": "hello"})
	require.Equal(t, "notes/*", c.next().name)

	// what the client says of its past is not lost with the keys
	body, err := json.Marshal(map[string]any{"clientId": c.id, "subscriptions": keys, "previousClientId": "before"})
	require.NoError(t, err)
	require.Equal(t, http.StatusNoContent, s.request(http.MethodPost, "/api/realtime", "", string(body)).status)
	require.NoError(t, topics.Notify(app, "room/1", 1, topics.Except("before")))
	c.quiet()

	// just as long as PocketBase allows
	fits := "room/4?" + strings.Repeat("x", 2500-len("room/4?"))
	c.mustSubscribe("", "room/1", fits, fits+"x")
	e := c.next()
	require.Equal(t, fits+"x", e.name)
	require.NoError(t, topics.Notify(app, "room/4", 1))
	require.Equal(t, fits, c.next().name)

	// all together are more than a client's queue could hold: the request and the
	// connection survive, and the log tells of the rest
	keys = []string{"room/1"}
	for range 30 {
		keys = append(keys, "room/5?"+strings.Repeat("y", 20<<10)+string(rune('a'+len(keys))))
	}
	c.mustSubscribe("", keys...)
	require.NotEmpty(t, c.drain())
	require.NoError(t, topics.Notify(app, "room/1", 1))
	require.Equal(t, "room/1", c.next().name)
	require.Positive(t, logged(t, app, "Refused to let a client subscribe to a topic"))
}

// PocketBase's own topics, and bodies that no SDK sends, are PocketBase's to
// judge.
func TestLongKeysOfPocketBase(t *testing.T) {
	app := newApp(t, topics.Config{AllowUnknown: true})
	s := serve(t, app)
	c := s.connect()
	long := strings.Repeat("x", 3000)

	require.Equal(t, http.StatusBadRequest, c.subscribe("", "users/*?"+long).status)
	require.Equal(t, http.StatusBadRequest, c.subscribe("", "users/*?"+long, "a?"+long).status)
	for body, status := range map[string]int{
		`{"clientId":"` + c.id + `","subscriptions":"` + long + `"}`:     http.StatusBadRequest,
		`{"clientId":"` + c.id + `","subscriptions":[1,"` + long + `"]}`: http.StatusBadRequest,
		`["` + long + `"]`:            http.StatusBadRequest,
		`{"clientId":"` + long:        http.StatusBadRequest,
		`{"clientId":"` + long + `"}`: http.StatusBadRequest,
	} {
		require.Equal(t, status, s.request(http.MethodPost, "/api/realtime", "", body).status, body[:60])
	}

	// what is larger than PocketBase's limits allow together is left to it, also if
	// the length is not known before
	large := `{"x":"` + strings.Repeat("y", 5<<20) + `","clientId":"` + c.id + `","subscriptions":["a?` + long + `"]}`
	require.Equal(t, http.StatusBadRequest, s.request(http.MethodPost, "/api/realtime", "", large).status)
	for body, status := range map[string]int{
		large:                               http.StatusBadRequest,
		strings.Replace(large, long, "", 1): http.StatusNoContent,
		`{"clientId":"` + c.id + `","subscriptions":["a?` + long + `"]}`: http.StatusNoContent,
	} {
		req, err := http.NewRequest(http.MethodPost, s.url+"/api/realtime", io.MultiReader(strings.NewReader(body)))
		require.NoError(t, err)
		require.Zero(t, req.ContentLength) // chunked
		req.Header.Set("Content-Type", "application/json")
		res, err := s.http.Do(req)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		require.Equal(t, status, res.StatusCode)
	}
	c.mustSubscribe("")
	c.drain()

	// also without rules
	c.mustSubscribe("", "a?"+long, "b b?"+long)
	require.Equal(t, "topic_options_too_long", c.next().notice(t).Code)
	require.Equal(t, "topic_options_too_long", c.next().notice(t).Code)
}
