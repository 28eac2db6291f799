package topics_test

import (
	"errors"
	"os"
	"sync"
	"testing"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tests"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

// world is an app with a member of a room on it, who is subscribed.
type world struct {
	t      *testing.T
	app    core.App
	s      *server
	ann    *core.Record
	token  string
	team   *core.Record
	room   *core.Record
	member *core.Record
	topic  string
	c      *stream
}

var worldTemplate string // removed by TestMain

// worldDir is the data directory that the worlds are copies of.
var worldDir = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "topics-world-*")
	if err != nil {
		return "", err
	}
	worldTemplate = dir

	app := core.NewBaseApp(core.BaseAppConfig{DataDir: dir})
	if err := errors.Join(app.Bootstrap(), app.RunAllMigrations()); err != nil {
		return "", err
	}

	users, err := app.FindCollectionByNameOrId("users")
	if err != nil {
		return "", err
	}
	teams, rooms := core.NewBaseCollection("teams"), core.NewBaseCollection("rooms")
	memberships, bans := core.NewBaseCollection("memberships"), core.NewBaseCollection("bans")
	teams.Fields.Add(&core.TextField{Name: "plan"})
	if err := app.Save(teams); err != nil {
		return "", err
	}
	users.Fields.Add(&core.TextField{Name: "role"}, &core.RelationField{Name: "team", CollectionId: teams.Id, MaxSelect: 1})
	rooms.ViewRule = rule("name = 'lobby'")
	rooms.Fields.Add(&core.TextField{Name: "name"}, &core.BoolField{Name: "open"},
		&core.RelationField{Name: "members", CollectionId: users.Id, MaxSelect: 100})
	if err := errors.Join(app.Save(users), app.Save(rooms)); err != nil {
		return "", err
	}
	memberships.Fields.Add(
		&core.RelationField{Name: "room", CollectionId: rooms.Id, MaxSelect: 1, CascadeDelete: true},
		&core.RelationField{Name: "user", CollectionId: users.Id, MaxSelect: 1, CascadeDelete: true},
		&core.TextField{Name: "role"})
	bans.Fields.Add(&core.TextField{Name: "topic"})

	return dir, errors.Join(app.Save(memberships), app.Save(bans),
		app.OnTerminate().Trigger(&core.TerminateEvent{App: app}), app.ResetBootstrapState())
})

func newWorldApp(t testing.TB, config topics.Config) *tests.TestApp {
	t.Helper()

	dir, err := worldDir()
	require.NoError(t, err)
	return newAppIn(t, dir, config)
}

func newWorld(t *testing.T, fields map[string]any, config topics.Config) *world {
	t.Helper()

	app := newWorldApp(t, config)
	w := &world{t: t, app: app, s: serve(t, app)}

	w.team = newRecord(t, app, "teams", map[string]any{"plan": "pro"})
	w.ann, w.token = newUser(t, app, "ann")
	w.ann.Set("role", "admin")
	w.ann.Set("team", w.team.Id)
	require.NoError(t, app.Save(w.ann))
	w.room = newRecord(t, app, "rooms", map[string]any{"name": "lobby", "open": true, "members": []string{w.ann.Id}})
	w.member = newRecord(t, app, "memberships", map[string]any{"room": w.room.Id, "user": w.ann.Id, "role": "x"})
	w.topic = "room/" + w.room.Id

	fields["pattern"] = "room/{id}"
	define(t, app, fields)
	define(t, app, map[string]any{"pattern": "public", "subscribeRule": ""})
	define(t, app, map[string]any{"pattern": "overtaken/{x}", "subscribeRule": ""})

	w.c = w.s.connect()
	w.c.mustSubscribe(w.token, w.topic, "public", "overtaken/1")
	w.c.quiet()

	return w
}

func (w *world) notify(topic, data string) {
	w.t.Helper()
	require.NoError(w.t, topics.Notify(w.app, topic, data))
}

// lost expects that nothing published from now on reaches the subscriber, who
// is told once.
func (w *world) lost(topic string) notice {
	w.t.Helper()

	w.notify(topic, "after")
	e := w.c.next()
	require.Equal(w.t, topic, e.name)
	n := e.notice(w.t)
	require.Equal(w.t, "revoked", n.Type)
	require.Equal(w.t, "topic_revoked", n.Code)
	require.Equal(w.t, topic, n.Topic)
	require.NotEmpty(w.t, n.Message)

	w.notify(topic, "later")
	w.notify("public", "still")
	require.Equal(w.t, `"still"`, w.c.next().data)
	w.c.quiet()

	found, err := w.app.SubscriptionsBroker().ClientById(w.c.id)
	require.NoError(w.t, err)
	require.False(w.t, found.HasSubscription(topic))

	return n
}

func (w *world) kept(topic string) {
	w.t.Helper()
	w.notify(topic, "kept")
	require.Equal(w.t, `"kept"`, w.c.next().data)
	w.c.quiet()
}

func (w *world) save(m core.Model)   { w.t.Helper(); require.NoError(w.t, w.app.Save(m)) }
func (w *world) delete(m core.Model) { w.t.Helper(); require.NoError(w.t, w.app.Delete(m)) }

func (w *world) set(record *core.Record, field string, value any) {
	w.t.Helper()
	record.Set(field, value)
	w.save(record)
}

func (w *world) definition() *core.Record {
	w.t.Helper()
	record, err := w.app.FindFirstRecordByData("_topics", "pattern", "room/{id}")
	require.NoError(w.t, err)
	return record
}
