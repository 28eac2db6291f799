package topics_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

// model knows who may hear what, after each commit. It drives a real server
// with random writes, subscriptions, publications and cuts, one at a time, and
// compares what each connection received with what the model says.
type model struct {
	t      *testing.T
	s      *server
	app    core.App
	random *rand.Rand

	users       []*modelUser
	teams       []*core.Record
	rooms       []*core.Record
	memberships []*core.Record
	bans        []*core.Record
	clients     []*modelClient

	published  int
	deliveries int
	revoked    int
	ended      int // subscriptions that writes have made wrong
	writes     int
}

type modelUser struct {
	record *core.Record
	token  string
}

const guest = -1

type modelClient struct {
	*stream
	user int // or guest
	keys map[string]*modelSub

	// since the last check
	expected []string
	revoked  []string
}

// modelSub is an open subscription.
type modelSub struct {
	shape int
	room  int
	as    int // whom its credentials still stand for
}

// shape is a rule and what it means.
type shape struct {
	text  *string
	bound bool
	holds func(m *model, user, room int, topic string) bool
}

func signedIn(_ *model, user, _ int, _ string) bool { return user != guest }

func (m *model) isMember(user, room int, role string) bool {
	return user != guest && slices.ContainsFunc(m.memberships, func(r *core.Record) bool {
		return r.GetString("user") == m.users[user].record.Id &&
			(room < 0 || r.GetString("room") == m.rooms[room].Id) && (role == "" || r.GetString("role") == role)
	})
}

func (m *model) role(user int) string {
	if user == guest {
		return ""
	}
	return m.users[user].record.GetString("role")
}

func (m *model) plan(user int) string {
	if user == guest {
		return ""
	}
	for _, team := range m.teams {
		if team.Id == m.users[user].record.GetString("team") {
			return team.GetString("plan")
		}
	}
	return ""
}

const isUser = "@request.auth.id != '' && "

var shapes = []shape{
	{rule(""), false, func(*model, int, int, string) bool { return true }},
	{nil, false, func(*model, int, int, string) bool { return false }},
	{rule("@request.auth.id != ''"), false, signedIn},
	{rule("@request.auth.role = 'admin'"), false, func(m *model, user, _ int, _ string) bool { return m.role(user) == "admin" }},
	{rule("@request.auth.team.plan = 'pro'"), false, func(m *model, user, _ int, _ string) bool { return m.plan(user) == "pro" }},
	{rule(byMembership), false, func(m *model, user, room int, _ string) bool { return m.isMember(user, room, "") }},
	{rule(byMembership + " && @collection.memberships.role ?= 'x'"), false, func(m *model, user, room int, _ string) bool { return m.isMember(user, room, "x") }},
	{rule("open = true"), true, func(m *model, _, room int, _ string) bool { return m.rooms[room].GetBool("open") }},
	{rule("@view"), true, func(m *model, _, room int, _ string) bool { return m.rooms[room].GetString("name") == "lobby" }},
	{rule(isUser + "members.id ?= @request.auth.id"), true, func(m *model, user, room int, _ string) bool {
		return user != guest && slices.Contains(m.rooms[room].GetStringSlice("members"), m.users[user].record.Id)
	}},
	{rule("@collection.bans.topic != @topic"), false, func(m *model, _, _ int, topic string) bool {
		return !slices.ContainsFunc(m.bans, func(r *core.Record) bool { return r.GetString("topic") == topic })
	}},
	{rule(isUser + "memberships_via_room.user ?= @request.auth.id"), true, func(m *model, user, room int, _ string) bool { return m.isMember(user, room, "") }},
	{rule(isUser + "(@request.auth.role = 'admin' || @collection.memberships.user ?= @request.auth.id)"), false, func(m *model, user, _ int, _ string) bool {
		return m.role(user) == "admin" || m.isMember(user, -1, "")
	}},
	{rule("open = true && @request.auth.role = 'admin'"), true, func(m *model, user, room int, _ string) bool {
		return m.rooms[room].GetBool("open") && m.role(user) == "admin"
	}},
}

func (m *model) topic(shape, room int) string { return fmt.Sprintf("k%d/%s", shape, m.rooms[room].Id) }

func (m *model) holds(sub *modelSub) bool {
	return shapes[sub.shape].holds(m, sub.as, sub.room, m.topic(sub.shape, sub.room))
}

func newModel(t *testing.T) *model {
	app := newWorldApp(t, topics.Config{SweepInterval: -1, QueueMessages: 1 << 20, QueueBytes: 1 << 30})
	m := &model{t: t, app: app, s: serve(t, app), random: topics.NewRand(t)}

	for range 2 {
		m.teams = append(m.teams, newRecord(t, app, "teams", map[string]any{"plan": "pro"}))
	}
	for i := range 5 {
		record, token := newUser(t, app, fmt.Sprint("user", i))
		m.users = append(m.users, &modelUser{record, token})
	}
	for range 2 {
		m.rooms = append(m.rooms, newRecord(t, app, "rooms", map[string]any{"name": "lobby", "open": true}))
	}
	for i, s := range shapes {
		fields := map[string]any{"pattern": fmt.Sprintf("k%d/{id}", i)}
		if s.text != nil {
			fields["subscribeRule"] = *s.text
		}
		if s.bound {
			fields["collection"] = "rooms"
		}
		define(t, app, fields)
	}
	for i := range 50 { // more on one topic than a publisher decides itself
		c := &modelClient{user: i%6 - 1}
		m.clients = append(m.clients, c)
		m.reconnect(c)
	}
	return m
}

func (m *model) pick(n int) int { return m.random.IntN(n) }

// reconnect opens a new connection, with new subscriptions.
func (m *model) reconnect(c *modelClient) {
	if c.stream != nil {
		m.check(c)
		c.disconnect()
	}
	c.stream = m.s.connect()
	c.keys = map[string]*modelSub{}
	m.subscribe(c)
}

// subscribe sends a list: some of the old keys, some new ones. The answers of
// the server are what the model says of each at this moment.
func (m *model) subscribe(c *modelClient) {
	want := map[string]*modelSub{}
	for _, key := range slices.Sorted(maps.Keys(c.keys)) { // so that a seed repeats a run
		if m.pick(3) > 0 {
			want[key] = c.keys[key]
		}
	}
	for range m.pick(16) {
		sub := &modelSub{shape: m.pick(len(shapes)), room: m.pick(len(m.rooms))}
		key := m.topic(sub.shape, sub.room)
		if m.pick(2) == 0 {
			key += "?c=" + c.stream.id // a decision of its own
		}
		want[key] = sub
	}

	token := ""
	if c.user != guest {
		token = m.users[c.user].token
	}
	var keys []string
	for key := range want {
		keys = append(keys, key)
	}
	c.mustSubscribe(token, keys...)

	for key, sub := range want {
		sub.as = c.user
		if !m.holds(sub) {
			delete(want, key)
		}
	}
	c.keys = want
}

func (m *model) publish() {
	shape, room := m.pick(len(shapes)), m.pick(len(m.rooms))
	topic := m.topic(shape, room)

	for range 1 + m.pick(40) {
		m.published++
		require.NoError(m.t, topics.Notify(m.app, topic, m.published))
		for _, c := range m.clients {
			for key, sub := range c.keys {
				if sub.shape == shape && sub.room == room && m.holds(sub) {
					c.expected = append(c.expected, fmt.Sprintf("%s %d", key, m.published))
				}
			}
		}
	}
}

// write changes something, and ends what it makes wrong.
func (m *model) write() {
	m.writes++
	app := m.app
	switch m.pick(4) {
	case 0:
		require.NoError(m.t, app.RunInTransaction(func(tx core.App) error {
			for range 1 + m.pick(3) {
				m.change(tx)
			}
			return nil
		}))
	case 1:
		m.rollBack()
	default:
		m.change(app)
	}

	// messages right after a commit, before anything is decided anew
	for range m.pick(3) {
		m.publish()
	}

	for _, c := range m.clients {
		for key, sub := range c.keys {
			if !m.holds(sub) {
				delete(c.keys, key)
				c.revoked = append(c.revoked, key)
				m.ended++
			}
		}
	}
	require.Eventually(m.t, func() bool { return topics.Settled(m.app) }, patience, 100*time.Microsecond)
}

func (m *model) rollBack() {
	require.Error(m.t, m.app.RunInTransaction(func(tx core.App) error {
		for _, r := range m.memberships {
			again, err := tx.FindRecordById("memberships", r.Id)
			require.NoError(m.t, err)
			require.NoError(m.t, tx.Delete(again))
		}
		room, err := tx.FindRecordById("rooms", m.rooms[0].Id)
		require.NoError(m.t, err)
		room.Set("open", !room.GetBool("open"))
		require.NoError(m.t, tx.Save(room))
		return errors.New("roll back")
	}))
}

func (m *model) change(app core.App) {
	user, room := m.users[m.pick(len(m.users))], m.rooms[m.pick(len(m.rooms))]
	save := func(record *core.Record, field string, value any) {
		record.Set(field, value)
		require.NoError(m.t, app.Save(record))
	}

	switch m.pick(12) {
	case 0:
		save(user.record, "role", m.oneOf("admin", "", "other"))
	case 1:
		save(user.record, "team", m.oneOf(m.teams[0].Id, m.teams[1].Id, ""))
	case 2:
		save(m.teams[m.pick(len(m.teams))], "plan", m.oneOf("pro", "free"))
	case 3:
		save(room, "open", m.pick(2) == 0)
	case 4:
		save(room, "name", m.oneOf("lobby", "cellar"))
	case 5:
		var members []string
		for _, u := range m.users {
			if m.pick(2) == 0 {
				members = append(members, u.record.Id)
			}
		}
		save(room, "members", members)
	case 6:
		if len(m.bans) > 0 && m.pick(2) == 0 {
			m.bans = m.deleteOne(app, m.bans)
			return
		}
		topic := m.topic(m.pick(len(shapes)), m.pick(len(m.rooms)))
		m.bans = append(m.bans, newRecord(m.t, app, "bans", map[string]any{"topic": topic}))
	case 7:
		user.record.RefreshTokenKey()
		require.NoError(m.t, app.Save(user.record))
		user.token = mustToken(m.t, user.record)
		for _, c := range m.clients {
			for _, sub := range c.keys {
				if sub.as != guest && m.users[sub.as] == user {
					sub.as = guest
				}
			}
		}
	default:
		switch {
		case len(m.memberships) < 3 || len(m.memberships) < 20 && m.pick(3) == 0:
			m.memberships = append(m.memberships, newRecord(m.t, app, "memberships",
				map[string]any{"room": room.Id, "user": user.record.Id, "role": m.oneOf("x", "y")}))
		case m.pick(2) == 0:
			m.memberships = m.deleteOne(app, m.memberships)
		default:
			r := m.memberships[m.pick(len(m.memberships))]
			r.Set("room", room.Id)
			save(r, "role", m.oneOf("x", "y"))
		}
	}
}

func (m *model) oneOf(values ...string) string { return values[m.pick(len(values))] }

func (m *model) deleteOne(app core.App, records []*core.Record) []*core.Record {
	i := m.pick(len(records))
	require.NoError(m.t, app.Delete(records[i]))
	return slices.Delete(records, i, i+1)
}

// check compares what came with what had to.
func (m *model) check(c *modelClient) {
	var got, revoked []string
	deadline := time.Now().Add(patience)
	for {
		for _, e := range c.drain() {
			switch {
			case e.data[0] != '{':
				got = append(got, e.name+" "+e.data)
			case e.notice(m.t).Type == "revoked":
				revoked = append(revoked, e.name)
			}
		}
		if len(revoked) >= len(c.revoked) || time.Now().After(deadline) {
			break
		}
	}

	// keys of one topic get a message in any order among themselves
	sortRuns(got)
	sortRuns(c.expected)
	require.Equal(m.t, c.expected, got)
	require.ElementsMatch(m.t, c.revoked, revoked)

	m.deliveries += len(got)
	m.revoked += len(revoked)
	c.expected, c.revoked = nil, nil
}

// sortRuns sorts the deliveries of the same message among themselves.
func sortRuns(deliveries []string) {
	number := func(s string) string { var key, n string; _, _ = fmt.Sscan(s, &key, &n); return n }
	for i := 0; i < len(deliveries); {
		j := i + 1
		for j < len(deliveries) && number(deliveries[j]) == number(deliveries[i]) {
			j++
		}
		slices.Sort(deliveries[i:j])
		i = j
	}
}

// Not one delivery without the right, not one missing with it.
func TestModel(t *testing.T) {
	m := newModel(t)

	// A short run can come to no revocation at all, so it goes on until there is
	// one to compare.
	for i := 0; i < 70*topics.Rounds() || m.ended == 0 && i < 5000; i++ {
		switch m.pick(10) {
		case 0, 1, 2:
			m.write()
		case 3:
			m.subscribe(m.clients[m.pick(len(m.clients))])
		case 4:
			if c := m.clients[m.pick(len(m.clients))]; m.pick(3) == 0 {
				m.reconnect(c)
			} else {
				m.check(c)
			}
		default:
			m.publish()
		}
	}
	for _, c := range m.clients {
		m.check(c)
	}

	require.Positive(t, m.deliveries)
	require.Positive(t, m.revoked)
	t.Logf("%d deliveries of %d messages, %d writes, %d revocations", m.deliveries, m.published, m.writes, m.revoked)
}
