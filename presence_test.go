package topics_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tests"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

// shown is a member as clients see it.
type shown struct {
	ID          string         `json:"id"`
	Collection  string         `json:"collection"`
	Record      map[string]any `json:"record"`
	State       map[string]any `json:"state"`
	Since       string         `json:"since"`
	Connections int            `json:"connections"`
}

type presenceEvent struct {
	Type    string   `json:"type"`
	Code    string   `json:"code"`
	Member  string   `json:"member"`
	Count   int      `json:"count"`
	Members *[]shown `json:"members"`
}

// view is what a page makes of the presence events it gets.
type view struct {
	c       *stream
	members map[string]shown
	count   int
	counted bool     // there is no list
	types   []string // of all events
	member  string   // its own, from ready
}

func newView(c *stream) *view { return &view{c: c, members: map[string]shown{}} }

func (v *view) apply(e event) string {
	v.c.s.t.Helper()

	var p presenceEvent
	require.NoError(v.c.s.t, json.Unmarshal([]byte(e.data), &p), e.data)
	v.types = append(v.types, p.Type)
	switch p.Type {
	case "ready":
		v.member = p.Member
	case "presence":
		v.members, v.count, v.counted = map[string]shown{}, p.Count, p.Members == nil
		if p.Members != nil {
			for _, m := range *p.Members {
				v.members[m.Collection+m.ID] = m
			}
		}
	case "join", "update", "leave":
		require.NotNil(v.c.s.t, p.Members, e.data)
		for _, m := range *p.Members {
			_, known := v.members[m.Collection+m.ID]
			require.Equal(v.c.s.t, p.Type != "join", known, "%v and then %s", v.types, e.data)
			if p.Type == "leave" {
				delete(v.members, m.Collection+m.ID)
			} else {
				v.members[m.Collection+m.ID] = m
			}
		}
		v.count = p.Count
	}
	if !v.counted {
		require.Len(v.c.s.t, v.members, v.count, "%v", v.types)
	}
	return p.Type
}

// until applies events up to the first of that type.
func (v *view) until(kind string) {
	v.c.s.t.Helper()
	for {
		if v.apply(v.c.next()) == kind {
			return
		}
	}
}

// ids are the members' ids in order.
func (v *view) ids() []string {
	list := []string{}
	for _, m := range v.members {
		list = append(list, m.ID)
	}
	sort.Strings(list)
	return list
}

// nothing says that no more events have come.
func (v *view) nothing() {
	v.c.s.t.Helper()
	require.Empty(v.c.s.t, v.c.drain(), "%v", v.types)
}

func sorted(ids ...string) []string {
	slices.Sort(ids)
	return ids
}

func watching(topic string) string { return key(topic, map[string]any{"presence": true}) }

// watch subscribes with the presence option and reads the snapshot.
func (s *server) watch(token, k string) *view {
	s.t.Helper()
	c := s.connect()
	c.mustSubscribe(token, k)
	v := newView(c)
	v.until("presence")
	return v
}

const shortGrace = 300 * time.Millisecond

func newPresenceApp(t testing.TB, config topics.Config) (*tests.TestApp, *server) {
	t.Helper()
	app := newApp(t, config)
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "room/{room}", "subscribeRule": "", "presenceRule": "", "presence": true})
	return app, s
}

func (s *server) presence(token, topic string) (answer struct {
	Count   int
	Members []shown
}, r reply,
) {
	s.t.Helper()
	r = s.request(http.MethodGet, "/api/topics/presence?topic="+url.QueryEscape(topic), token, "")
	if r.status == http.StatusOK {
		require.NoError(s.t, json.Unmarshal([]byte(r.body), &answer), r.body)
	}
	return answer, r
}

func (s *server) setState(token string, c *stream, topic, state string) reply {
	s.t.Helper()
	return s.request(http.MethodPost, "/api/topics/presence", token,
		fmt.Sprintf(`{"topic":%q,"clientId":%q,"state":%s}`, topic, c.id, state))
}

func TestMembersAreNotConnections(t *testing.T) {
	app, s := newPresenceApp(t, topics.Config{PresenceGrace: shortGrace})
	ann, annToken := newUser(t, app, "ann")
	bob, bobToken := newUser(t, app, "bob")

	one := s.watch(annToken, watching("room/1"))
	require.Equal(t, []string{ann.Id}, one.ids())
	require.Equal(t, ann.Id, one.member)

	// another tab is no event, whether it watches or not
	two := s.connect()
	two.mustSubscribe(annToken, "room/1")
	one.nothing()

	three := s.watch(bobToken, watching("room/1"))
	require.Equal(t, sorted(ann.Id, bob.Id), three.ids())
	require.Equal(t, shown{ID: ann.Id, Collection: "users", Since: three.members["users"+ann.Id].Since, Connections: 2}, three.members["users"+ann.Id])
	one.until("join")
	require.Equal(t, sorted(ann.Id, bob.Id), one.ids())

	// nor is its end, nor a list that is sent again
	two.disconnect()
	waitForClients(t, app, 2)
	three.c.mustSubscribe(bobToken, watching("room/1"))
	require.NoError(t, topics.Notify(app, "room/1", 1))
	one.until("message")
	three.until("message")
	require.Equal(t, []string{"ready", "presence", "join", "message"}, one.types)
	require.Equal(t, []string{"ready", "presence", "message"}, three.types)

	// the end of both is, after the grace
	start := time.Now()
	one.c.disconnect()
	three.until("leave")
	require.GreaterOrEqual(t, time.Since(start), shortGrace)
	require.Equal(t, []string{bob.Id}, three.ids())

	list, err := topics.Presence(app, "room/1")
	require.NoError(t, err)
	require.Len(t, list, 1)
	require.Equal(t, bob.Id, list[0].ID)
	require.Equal(t, 1, list[0].Connections)
	count, err := topics.PresenceCount(app, "room/1")
	require.NoError(t, err)
	require.Equal(t, 1, count)
	require.Equal(t, 1, topics.From(app).Stats().Members)
}

// A connection that ends and comes back within the grace is nothing, whether
// it was cut, had unsubscribed or has changed its options.
func TestNothingIsShownOfAReconnect(t *testing.T) {
	app, s := newPresenceApp(t, topics.Config{PresenceGrace: time.Minute})
	_, annToken := newUser(t, app, "ann")
	_, bobToken := newUser(t, app, "bob")

	v := s.watch(bobToken, watching("room/1"))
	c := s.connect()
	c.mustSubscribe(annToken, "room/1")
	v.until("join")
	since := v.members["users"+v.ids()[0]].Since

	for range 20 {
		c.disconnect()
		c = s.connect()
		c.mustSubscribe(annToken, "room/1")
		c.mustSubscribe(annToken)
		c.mustSubscribe(annToken, key("room/1", map[string]any{"envelope": true}))
	}
	require.NoError(t, topics.Notify(app, "room/1", 1))
	v.until("message")
	require.Equal(t, []string{"ready", "presence", "join", "message"}, v.types)
	require.Equal(t, since, v.members["users"+v.ids()[0]].Since)

	list, err := topics.Presence(app, "room/1")
	require.NoError(t, err)
	require.Len(t, list, 2)
	require.Equal(t, []int{1, 1}, []int{list[0].Connections, list[1].Connections})
	require.LessOrEqual(t, topics.Grants(app), 4, "what is left of old connections does not pile up")
}

func TestGuestsAreMembers(t *testing.T) {
	app, s := newPresenceApp(t, topics.Config{PresenceGrace: shortGrace})

	v := s.watch("", watching("room/1"))
	require.Len(t, v.ids(), 1)
	require.Equal(t, v.member, v.ids()[0])
	require.Empty(t, v.members[v.member].Collection)
	require.NotContains(t, v.c.id, v.member, "with the id of a connection others could change its subscriptions")

	// a guest with the resume option is the same one over reconnects
	k := key("room/1", map[string]any{"resume": "secret"})
	c := s.connect()
	c.mustSubscribe("", k)
	v.until("join")
	guest := openReady(t, c)
	c.disconnect()
	c = s.connect()
	c.mustSubscribe("", k)
	require.Equal(t, guest, openReady(t, c))
	c.mustSubscribe("")
	v.until("leave")
	require.Equal(t, []string{v.member}, v.ids())

	// a guest who signs in becomes another member at once
	_, token := newUser(t, app, "ann")
	v.c.mustSubscribe(token, watching("room/1"))
	for len(v.ids()) != 1 || v.ids()[0] == v.member {
		v.apply(v.c.next())
	}
}

func openReady(t testing.TB, c *stream) string {
	t.Helper()
	var e presenceEvent
	require.NoError(t, json.Unmarshal([]byte(c.next().data), &e))
	require.Equal(t, "ready", e.Type)
	require.NotEmpty(t, e.Member)
	return e.Member
}

func TestASuperuserIsNoMember(t *testing.T) {
	app, s := newPresenceApp(t, topics.Config{})
	define(t, app, map[string]any{"pattern": "staff", "presence": true})
	root := newSuperuser(t, app)
	_, ann := newUser(t, app, "ann")

	for _, topic := range []string{"room/1", "staff"} {
		v := s.watch(root, watching(topic))
		require.Empty(t, v.ids())
		require.Empty(t, v.member)
		answer, r := s.presence(root, topic)
		require.Equal(t, http.StatusOK, r.status, r.body)
		require.Empty(t, answer.Members)
		require.Contains(t, r.body, `"members":[]`)
	}

	v := s.watch(root, watching("room/1"))
	c := s.connect()
	c.mustSubscribe(ann, "room/1")
	v.until("join")
}

func TestPresenceRule(t *testing.T) {
	app, s := newPresenceApp(t, topics.Config{})
	define(t, app, map[string]any{
		"pattern": "club/{room}", "subscribeRule": "", "presence": true,
		"presenceRule": `@request.auth.id != "" && @request.auth.name = "seer"`,
	})
	ann, annToken := newUser(t, app, "ann")
	_, bobToken := newUser(t, app, "bob")
	name := func(name string) {
		ann.Set("name", name)
		require.NoError(t, app.Save(ann))
	}

	// bob sees nothing, and is told once
	bob := s.connect()
	bob.mustSubscribe(bobToken, watching("club/1"))
	c := s.connect()
	c.mustSubscribe(annToken, watching("club/1"))
	bob.mustSubscribe(bobToken, watching("club/1"))
	bob.mustSubscribe(bobToken, watching("club/1"), "room/1")
	require.NoError(t, topics.Notify(app, "club/1", 1))
	require.Equal(t, "ready presence_denied 1", story(t, bob.drain()))
	_, r := s.presence(bobToken, "club/1")
	require.Equal(t, http.StatusForbidden, r.status, r.body)
	require.Equal(t, "topic_denied", r.code("topic"))
	require.NotContains(t, r.body, "count")
	require.Equal(t, "ready presence_denied 1", story(t, c.drain()))

	// who gets the right has it with the next list
	name("seer")
	c.mustSubscribe(annToken, watching("club/1"))
	v := newView(c)
	v.until("presence")
	require.Len(t, v.ids(), 2)
	answer, _ := s.presence(annToken, "club/1")
	require.Equal(t, 2, answer.Count)

	// and whoever loses it sees no more
	name("blind")
	v.until("presence_revoked")
	late := s.connect()
	late.mustSubscribe("", "club/1")
	require.NoError(t, topics.Notify(app, "club/1", 2))
	v.until("message")
	v.nothing()
	require.NotContains(t, v.types, "join")

	// a topic without members has none to see
	define(t, app, map[string]any{"pattern": "quiet", "subscribeRule": "", "presenceRule": ""})
	q := s.connect()
	q.mustSubscribe(bobToken, watching("quiet"))
	require.Equal(t, "ready", q.envelope().Type)
	denied := q.envelope()
	require.Equal(t, []string{"presence_denied", "presence_disabled"}, []string{denied.Type, denied.Code})
	_, r = s.presence(bobToken, "quiet")
	require.Equal(t, http.StatusBadRequest, r.status, r.body)
	require.Equal(t, "presence_disabled", r.code("topic"))
	_, err := topics.Presence(app, "quiet")
	require.ErrorIs(t, err, topics.ErrNoPresence)
	_, err = topics.PresenceCount(app, "unknown")
	require.ErrorIs(t, err, topics.ErrNoPresence)
	_, err = topics.Presence(app, "a b")
	require.ErrorIs(t, err, topics.ErrMalformedTopic)
}

// Who may not be in a topic is not shown in it: not even in the grace.
func TestWhoMayNotBeThereLeavesAtOnce(t *testing.T) {
	app, s := newPresenceApp(t, topics.Config{PresenceGrace: time.Hour})
	define(t, app, map[string]any{
		"pattern": "club/{room}", "subscribeRule": `@request.auth.name = "in"`, "presenceRule": "", "presence": true,
	})
	join := func(who string) (*core.Record, *stream) {
		user, token := newUser(t, app, who)
		user.Set("name", "in")
		require.NoError(t, app.Save(user))
		c := s.connect()
		c.mustSubscribe(token, "club/1")
		return user, c
	}
	_, bob := newUser(t, app, "bob")
	v := s.watch(newSuperuser(t, app), watching("club/1"))

	out := func(user *core.Record) {
		user.Set("name", "out")
		require.NoError(t, app.Save(user))
	}
	there, _ := join("there")
	v.until("join")
	out(there)
	v.until("leave")

	gone, c := join("gone")
	v.until("join")
	c.disconnect()
	waitForClients(t, app, 2)
	require.Equal(t, []string{gone.Id}, v.ids())
	out(gone)
	v.until("leave")
	require.Empty(t, v.ids())

	deleted, c := join("deleted")
	v.until("join")
	c.disconnect()
	waitForClients(t, app, 2)
	require.NoError(t, app.Delete(deleted))
	v.until("leave")

	// in an open topic too
	v = s.watch(bob, watching("room/1"))
	user, token := newUser(t, app, "eve")
	c = s.connect()
	c.mustSubscribe(token, "room/1")
	v.until("join")
	require.NoError(t, app.Delete(user))
	v.until("leave")
	require.NotContains(t, v.ids(), user.Id)
}

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
	for _, state := range []any{"text", 1, []int{1}, map[string]any{"x": strings.Repeat("x", 2<<10)}} {
		raw, err := json.Marshal(map[string]any{"query": map[string]any{"state": state}})
		require.NoError(t, err)
		bad := s.connect()
		if r := bad.subscribe(annToken, "room/1?options="+url.QueryEscape(string(raw))); r.status != http.StatusNoContent {
			require.Equal(t, http.StatusBadRequest, r.status, r.body) // longer than core's own limit
			continue
		}
		n := bad.next().notice(t)
		require.Equal(t, "topic_options_invalid", n.Code)
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

// A rule's presence takes effect as it is saved.
func TestPresenceIsSwitchedOnAndOff(t *testing.T) {
	app, s := newPresenceApp(t, topics.Config{PresenceGrace: time.Hour})
	r := define(t, app, map[string]any{"pattern": "a", "subscribeRule": "", "presenceRule": "", "presence": true})
	ann, token := newUser(t, app, "ann")

	v := s.watch(token, watching("a"))
	require.Equal(t, []string{ann.Id}, v.ids())
	r.Set("presence", false)
	require.NoError(t, app.Save(r))
	v.until("presence_revoked")

	r.Set("presence", true)
	require.NoError(t, app.Save(r))
	require.Eventually(t, func() bool {
		count, err := topics.PresenceCount(app, "a")
		return err == nil && count == 1
	}, patience, time.Millisecond)
	v.nothing()
	v.c.mustSubscribe(token, watching("a"))
	v.until("presence")
	require.Equal(t, []string{ann.Id}, v.ids())
}

// Beyond the limit watchers get the number of members, and below it the list
// again.
func TestManyMembersAreCounted(t *testing.T) {
	_, s := newPresenceApp(t, topics.Config{PresenceGrace: -1, PresenceSnapshot: 10})
	v := s.watch("", watching("room/1"))
	var others []*stream
	for range 10 {
		c := s.connect()
		c.mustSubscribe("", "room/1")
		others = append(others, c)
	}
	for v.count < 11 {
		v.apply(v.c.next())
	}
	require.True(t, v.counted)
	require.Empty(t, v.members)
	answer, r := s.presence("", "room/1")
	require.Equal(t, 11, answer.Count)
	require.NotContains(t, r.body, "members")
	require.Equal(t, 11, s.watch("", watching("room/1")).count-1)

	for i, c := range others[:3] {
		c.disconnect()
		for v.count != 11-i {
			v.apply(v.c.next())
		}
	}
	require.False(t, v.counted, "a tenth below the limit")
	require.Len(t, v.ids(), 9)
}
