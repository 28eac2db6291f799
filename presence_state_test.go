package topics_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

func TestStates(t *testing.T) {
	app, s := newPresenceApp(t, topics.Config{PresenceGrace: shortGrace})
	ann, annToken := newUser(t, app, "ann")
	_, bobToken := newUser(t, app, "bob")
	stateOf := func(v *view) map[string]any { return v.members["users"+ann.Id].State }

	v := s.watch(bobToken, watching("room/1"))
	one := s.connect()
	one.mustSubscribe(annToken, key("room/1", map[string]any{"state": map[string]any{"mood": "good"}}))
	v.until("join")
	require.Equal(t, map[string]any{"mood": "good"}, stateOf(v))

	// the newest of its connections counts
	two := s.connect()
	two.mustSubscribe(annToken, key("room/1", map[string]any{"state": `{"mood":"text"}`}))
	v.until("update")
	require.Equal(t, map[string]any{"mood": "text"}, stateOf(v))
	require.Equal(t, http.StatusNoContent, s.setState(annToken, one, "room/1", ` {"mood": "new", "n": [1, 2]} `).status)
	v.until("update")
	require.Equal(t, map[string]any{"mood": "new", "n": []any{1.0, 2.0}}, stateOf(v))

	// the same again is nothing, and so is a list that is sent again
	require.Equal(t, http.StatusNoContent, s.setState(annToken, one, "room/1", `{"mood":"new","n":[1,2]}`).status)
	two.mustSubscribe(annToken, key("room/1", map[string]any{"state": `{"mood":"text"}`}))
	v.nothing()

	// with the connection that has set it a state goes, after the grace
	one.disconnect()
	v.until("update")
	require.Equal(t, map[string]any{"mood": "text"}, stateOf(v))
	require.Equal(t, http.StatusNoContent, s.setState(annToken, two, "room/1", "null").status)
	v.until("update")
	require.Nil(t, stateOf(v))
	require.NotContains(t, v.types, "leave")

	for name, c := range map[string]struct {
		token, body string
		status      int
		field, code string
	}{
		"no object":          {annToken, `{"topic":"room/1","clientId":"ID","state":[1]}`, 400, "state", "state_invalid"},
		"no state":           {annToken, `{"topic":"room/1","clientId":"ID"}`, 400, "state", "state_invalid"},
		"too long":           {annToken, `{"topic":"room/1","clientId":"ID","state":{"x":"` + strings.Repeat("x", 2<<10) + `"}}`, 400, "state", "state_invalid"},
		"far too long":       {annToken, `{"topic":"room/1","clientId":"ID","state":{"x":"` + strings.Repeat("x", 20<<10) + `"}}`, 413, "body", "payload_too_large"},
		"no JSON":            {annToken, `nonsense`, 400, "body", "body_invalid"},
		"a key twice":        {annToken, `{"topic":"room/1","clientId":"ID","state":{"x":{"a":1,"a":2}}}`, 400, "state", "payload_duplicate_key"},
		"topic twice":        {annToken, `{"topic":"room/1","topic":"room/2","clientId":"ID","state":{}}`, 400, "body", "payload_duplicate_key"},
		"no topic":           {annToken, `{"clientId":"ID","state":{}}`, 400, "topic", "topic_required"},
		"no connection":      {annToken, `{"topic":"room/1","state":{}}`, 400, "clientId", "client_invalid"},
		"no such connection": {annToken, `{"topic":"room/1","clientId":"x","state":{}}`, 404, "clientId", "client_invalid"},
		"somebody else's":    {bobToken, `{"topic":"room/1","clientId":"ID","state":{}}`, 403, "clientId", "client_invalid"},
		"a guest":            {"", `{"topic":"room/1","clientId":"ID","state":{}}`, 403, "clientId", "client_invalid"},
		"another topic":      {annToken, `{"topic":"room/2","clientId":"ID","state":{}}`, 400, "topic", "not_a_member"},
		"a reserved topic":   {annToken, `{"topic":"users","clientId":"ID","state":{}}`, 400, "topic", "not_a_member"},
	} {
		r := s.request(http.MethodPost, "/api/topics/presence", c.token, strings.ReplaceAll(c.body, "ID", two.id))
		require.Equal(t, c.status, r.status, "%s: %s", name, r.body)
		require.Equal(t, c.code, r.code(c.field), "%s: %s", name, r.body)
	}
	for _, state := range []any{"text", 1, []int{1}, map[string]any{"x": strings.Repeat("x", 2<<10)}, `{"a":1,"a":2}`} {
		raw, err := json.Marshal(map[string]any{"query": map[string]any{"state": state}})
		require.NoError(t, err)
		bad := s.connect()
		k := "room/1?options=" + url.QueryEscape(string(raw))
		bad.mustSubscribe(annToken, k)
		code := "topic_options_invalid"
		if len(k) > 2500 {
			code = "topic_options_too_long"
		}
		require.Equal(t, code, bad.next().notice(t).Code)
	}
	v.nothing()
}

// What is shown of an account is what a guest may see of its record.
func TestPresenceFields(t *testing.T) {
	app, s := newPresenceApp(t, topics.Config{})
	users, err := app.FindCollectionByNameOrId("users")
	require.NoError(t, err)
	users.Fields.Add(&core.TextField{Name: "phone"}, &core.TextField{Name: "secret", Hidden: true})
	require.NoError(t, app.Save(users))
	r := define(t, app, map[string]any{
		"pattern": "club/{room}", "subscribeRule": "", "presenceRule": "", "presence": true, "presenceFields": "name, phone email",
	})
	app.OnRecordEnrich("users").BindFunc(func(e *core.RecordEnrichEvent) error {
		if e.RequestInfo.Auth == nil {
			e.Record.Hide("phone")
		}
		return e.Next()
	})

	ann, token := newUser(t, app, "ann")
	ann.Set("name", "Ann")
	ann.Set("phone", "123")
	ann.Set("secret", "x")
	require.NoError(t, app.Save(ann))
	record := func(v *view) map[string]any { return v.members["users"+ann.Id].Record }

	v := s.watch(newSuperuser(t, app), watching("club/1"))
	c := s.connect()
	c.mustSubscribe(token, "club/1")
	v.until("join")
	require.Equal(t, map[string]any{"name": "Ann"}, record(v))

	ann.Set("emailVisibility", true)
	require.NoError(t, app.Save(ann))
	v.until("update")
	require.Equal(t, map[string]any{"name": "Ann", "email": "ann@topics.test"}, record(v))
	list, err := topics.Presence(app, "club/1")
	require.NoError(t, err)
	require.Equal(t, record(v), list[0].Record)

	// also while she is away
	c.disconnect()
	waitForClients(t, app, 1)
	ann.Set("emailVisibility", false)
	require.NoError(t, app.Save(ann))
	v.until("update")
	require.Equal(t, map[string]any{"name": "Ann"}, record(v))

	r.Set("presenceFields", "")
	require.NoError(t, app.Save(r))
	v.until("update")
	require.Empty(t, record(v))
	require.NotContains(t, v.types, "leave")

	for fields, code := range map[string]string{"nam": "validation_unknown_field", "name,secret": "validation_hidden_field", "password": "validation_hidden_field"} {
		r.Set("presenceFields", fields)
		require.ErrorContains(t, app.Save(r), "presenceFields")
		require.Contains(t, fmt.Sprintf("%#v", app.Save(r)), code)
	}
}

// A record that changes while its account subscribes is shown as it is.
func TestARecordChangesWhileItsAccountSubscribes(t *testing.T) {
	app, s := newPresenceApp(t, topics.Config{})
	define(t, app, map[string]any{"pattern": "club/{room}", "subscribeRule": "", "presenceRule": "", "presence": true, "presenceFields": "name"})
	ann, token := newUser(t, app, "ann")
	v := s.watch(newSuperuser(t, app), watching("club/1"))

	// between the plugin's decision and core
	app.OnRealtimeSubscribeRequest().Bind(&hook.Handler[*core.RealtimeSubscribeRequestEvent]{Priority: math.MaxInt, Func: func(e *core.RealtimeSubscribeRequestEvent) error {
		ann.Set("name", "New")
		if err := e.App.Save(ann); err != nil {
			return err
		}
		require.Eventually(t, func() bool { return topics.Decided(app) }, patience, time.Millisecond)
		return e.Next()
	}})
	s.connect().mustSubscribe(token, "club/1")
	for len(v.ids()) == 0 || v.members["users"+ann.Id].Record["name"] != "New" {
		v.apply(v.c.next())
	}
}

// What fails in a handler of OnRecordEnrich shows no field, and ends nothing.
func TestAnEnrichHandlerMayFail(t *testing.T) {
	app, s := newPresenceApp(t, topics.Config{})
	define(t, app, map[string]any{"pattern": "club/{room}", "subscribeRule": "", "presenceRule": "", "presence": true, "presenceFields": "name"})
	ann, token := newUser(t, app, "ann")
	app.OnRecordEnrich("users").BindFunc(func(e *core.RecordEnrichEvent) error {
		switch e.Record.GetString("name") {
		case "panic":
			panic("in a handler")
		case "error":
			return errors.New("in a handler")
		}
		return e.Next()
	})
	v := s.watch(newSuperuser(t, app), watching("club/1"))
	s.connect().mustSubscribe(token, "club/1")
	v.until("join")
	for _, name := range []string{"panic", "Ann", "error"} {
		ann.Set("name", name)
		require.NoError(t, app.Save(ann))
		v.until("update")
		require.Equal(t, name == "Ann", v.members["users"+ann.Id].Record["name"] == "Ann")
	}
}

// null takes back also what an earlier connection has set.
func TestAStateIsTakenBackAfterAReconnect(t *testing.T) {
	app, s := newPresenceApp(t, topics.Config{PresenceGrace: time.Minute})
	_, token := newUser(t, app, "ann")
	c := s.connect()
	c.mustSubscribe(token, "room/1")
	require.Equal(t, http.StatusNoContent, s.setState(token, c, "room/1", `{"typing":true}`).status)
	c.disconnect()
	waitForClients(t, app, 0)
	c = s.connect()
	c.mustSubscribe(token, "room/1")
	state := func() string {
		list, err := topics.Presence(app, "room/1")
		require.NoError(t, err)
		require.Len(t, list, 1)
		return string(list[0].State)
	}
	require.Equal(t, `{"typing":true}`, state(), "the reconnect itself changes nothing")
	require.Equal(t, http.StatusNoContent, s.setState(token, c, "room/1", "null").status)
	require.Empty(t, state())
}

// Other options of the same topic in one request are no leave and join, also
// without a grace.
func TestOtherOptionsAreNoOtherMember(t *testing.T) {
	app, s := newPresenceApp(t, topics.Config{PresenceGrace: -1})
	_, token := newUser(t, app, "ann")
	calls := hookStory(topics.From(app), "room/2")
	v := s.watch("", watching("room/1"))
	c := s.connect()
	c.mustSubscribe(token, key("room/1", map[string]any{"state": map[string]any{"n": 1}}), "room/2")
	v.until("join")
	require.Contains(t, receive(t, calls), "occupied")
	require.Contains(t, receive(t, calls), "join")
	c.mustSubscribe(token, key("room/1", map[string]any{"state": map[string]any{"n": 2}}), key("room/2", map[string]any{"envelope": true}))
	v.until("update")
	require.Equal(t, []string{"ready", "presence", "join", "update"}, v.types)
	require.Empty(t, calls)
}
