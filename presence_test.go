package topics_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

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
	waitForClients(t, app, 2) // the server notices the end of the others by itself
	require.NoError(t, topics.Notify(app, "room/1", 1))
	v.until("message")
	require.Equal(t, []string{"ready", "presence", "join", "message"}, v.types)
	require.Equal(t, since, v.members["users"+v.ids()[0]].Since)

	waitForClients(t, app, 2) // the server has noticed the last end
	list, err := topics.Presence(app, "room/1")
	require.NoError(t, err)
	require.Len(t, list, 2)
	require.Equal(t, []int{1, 1}, []int{list[0].Connections, list[1].Connections})
	require.LessOrEqual(t, topics.Grants(app), 4, "what is left of old connections does not pile up")
}

// An unsubscribe on a connection that goes on is a leave, long before the grace
// is over; one that is followed by a subscribe is nothing.
func TestLeavingIsLeaving(t *testing.T) {
	app, s := newPresenceApp(t, topics.Config{PresenceGrace: time.Hour})
	_, ann := newUser(t, app, "ann")
	_, bob := newUser(t, app, "bob")
	v := s.watch(bob, watching("room/1"))
	c := s.connect()
	c.mustSubscribe(ann, "room/1", "room/2")
	v.until("join")

	c.mustSubscribe(ann, "room/2")
	c.mustSubscribe(ann, "room/2", "room/1")
	require.NoError(t, topics.Notify(app, "room/1", 1))
	v.until("message")
	require.Equal(t, []string{"ready", "presence", "join", "message"}, v.types)

	start := time.Now()
	c.mustSubscribe(ann, "room/2")
	v.until("leave")
	require.Less(t, time.Since(start), 3*time.Second)

	// the connection's own end has the grace
	c.mustSubscribe(ann, "room/2", "room/1")
	v.until("join")
	c.disconnect()
	waitForClients(t, app, 1)
	require.NoError(t, topics.Notify(app, "room/1", 1))
	v.until("message")
	require.Len(t, v.ids(), 2)
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
	define(t, app, map[string]any{"pattern": "silent", "subscribeRule": ""})
	q.mustSubscribe(bobToken, watching("silent"))
	require.Equal(t, "ready", q.envelope().Type)
	require.Equal(t, "topic_denied", q.envelope().Code, "only who may see them learns that there are none")
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
	for v.count < 12 {
		v.apply(v.c.next())
	}

	// what is not shown is no event
	require.Equal(t, http.StatusNoContent, s.setState("", v.c, "room/1", `{"n":1}`).status)
	c := s.connect()
	c.mustSubscribe("", "room/1")
	require.Equal(t, "presence", v.apply(v.c.next()))
	require.Equal(t, 13, v.count)
	c.disconnect()
	v.until("presence")

	for i, c := range others[:3] {
		c.disconnect()
		for v.count != 11-i {
			v.apply(v.c.next())
		}
	}
	require.False(t, v.counted, "a tenth below the limit")
	require.Len(t, v.ids(), 9)
}

// Where the list would be long in bytes there is the number too.
func TestLongStatesAreCounted(t *testing.T) {
	_, s := newPresenceApp(t, topics.Config{QueueBytes: 16 << 10})
	v := s.watch("", watching("room/1"))
	for range 3 {
		c := s.connect()
		c.mustSubscribe("", "room/1")
		state := `{"x":"` + strings.Repeat("x", 2000) + `"}`
		require.Equal(t, http.StatusNoContent, s.setState("", c, "room/1", state).status)
	}
	for !v.counted {
		v.apply(v.c.next())
	}
	for v.count < 4 {
		v.apply(v.c.next())
	}
}

// The snapshot comes after what is replayed, also where that is more than fits
// into the queue.
func TestTheSnapshotFollowsTheReplay(t *testing.T) {
	app, s := newPresenceApp(t, topics.Config{QueueMessages: 8})
	define(t, app, map[string]any{"pattern": "kept", "subscribeRule": "", "presenceRule": "", "presence": true, "history": 100})
	notifyAll(t, app, "kept", 1, 60)
	c := s.connect()
	c.mustSubscribe("", key("kept", map[string]any{"presence": true, "replay": 60}))
	v := newView(c)
	v.until("presence")
	require.Len(t, v.types, 62)
	require.Equal(t, "ready", v.types[0])
	require.Equal(t, "message", v.types[60])
	require.Len(t, v.ids(), 1)
}

// A connection is its owner's by the address too, as for PocketBase.
func TestAStateIsOfTheConnectionsAddress(t *testing.T) {
	app, s := newPresenceApp(t, topics.Config{})
	app.Settings().TrustedProxy.Headers = []string{"X-Test-IP"}
	require.NoError(t, app.Save(app.Settings()))
	c := s.connect()
	c.mustSubscribe("", "room/1")
	require.Equal(t, http.StatusNoContent, s.setState("", c, "room/1", `{}`).status)

	req, err := http.NewRequest(http.MethodPost, s.url+"/api/topics/presence", strings.NewReader(fmt.Sprintf(`{"topic":"room/1","clientId":%q,"state":{}}`, c.id)))
	require.NoError(t, err)
	req.Header.Set("X-Test-IP", "192.0.2.1")
	res, err := s.http.Do(req)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	require.Equal(t, http.StatusForbidden, res.StatusCode)
}
