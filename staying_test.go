package topics_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

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
	app, err := tests.NewTestApp(dir)
	require.NoError(t, err)
	t.Cleanup(app.Cleanup)
	require.NoError(t, topics.Register(app, config))

	return app
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

const byMembership = "@request.auth.id != '' && @collection.memberships.room ?= @topic.id && @collection.memberships.user ?= @request.auth.id"

// Each of these ends access.
func TestWhatEndsAccess(t *testing.T) {
	type scenario struct {
		rule string
		more map[string]any
		ends func(w *world)
		back func(w *world) // gives the access back, where that is possible
	}

	for name, sc := range map[string]scenario{
		"auth record deleted": {
			rule: "@request.auth.id != ''",
			ends: func(w *world) { w.delete(w.ann) },
		},
		"password changed": {
			rule: "@request.auth.id != ''",
			ends: func(w *world) { w.ann.SetPassword("0987654321"); w.save(w.ann) },
			back: func(w *world) { w.token = mustToken(w.t, w.ann) },
		},
		"token key refreshed": {
			rule: "@request.auth.id != ''",
			ends: func(w *world) { w.ann.RefreshTokenKey(); w.save(w.ann) },
			back: func(w *world) { w.token = mustToken(w.t, w.ann) },
		},
		"auth field changed": {
			rule: "@request.auth.role = 'admin'",
			ends: func(w *world) { w.set(w.ann, "role", "") },
			back: func(w *world) { w.set(w.ann, "role", "admin") },
		},
		"relation of the auth changed": {
			rule: "@request.auth.team.plan = 'pro'",
			ends: func(w *world) { w.set(w.team, "plan", "free") },
			back: func(w *world) { w.set(w.team, "plan", "pro") },
		},
		"auth moves to another relation": {
			rule: "@request.auth.team.plan = 'pro'",
			ends: func(w *world) { w.set(w.ann, "team", "") },
			back: func(w *world) { w.set(w.ann, "team", w.team.Id) },
		},
		"auth secret changed": {
			rule: "@request.auth.id != ''",
			ends: func(w *world) {
				users := mustCollection(w.t, w.app, "users")
				users.AuthToken.Secret = "a-new-secret-that-is-long-enough-000"
				w.save(users)
			},
			back: func(w *world) {
				again, err := w.app.FindRecordById("users", w.ann.Id)
				require.NoError(w.t, err)
				w.token = mustToken(w.t, again)
			},
		},
		"record created": {
			rule: "@request.auth.id != '' && @collection.bans.topic != @topic",
			ends: func(w *world) { newRecord(w.t, w.app, "bans", map[string]any{"topic": w.topic}) },
		},
		"record updated": {
			rule: byMembership + " && @collection.memberships.role ?= 'x'",
			ends: func(w *world) { w.set(w.member, "role", "y") },
			back: func(w *world) { w.set(w.member, "role", "x") },
		},
		"record moved away": {
			rule: byMembership,
			ends: func(w *world) { w.set(w.member, "room", "") },
			back: func(w *world) { w.set(w.member, "room", w.room.Id) },
		},
		"record deleted": {
			rule: byMembership,
			ends: func(w *world) { w.delete(w.member) },
			back: func(w *world) {
				newRecord(w.t, w.app, "memberships", map[string]any{"room": w.room.Id, "user": w.ann.Id})
			},
		},
		"record deleted through the API": {
			rule: byMembership,
			ends: func(w *world) {
				r := w.s.request(http.MethodDelete, "/api/collections/memberships/records/"+w.member.Id, newSuperuser(w.t, w.app), "")
				require.Equal(w.t, 204, r.status, r.body)
			},
		},
		"in a batch": {
			rule: byMembership,
			ends: func(w *world) {
				w.app.Settings().Batch.Enabled = true
				w.app.Settings().Batch.MaxRequests = 10
				w.app.Settings().Batch.Timeout = 3
				r := w.s.request(http.MethodPost, "/api/batch", newSuperuser(w.t, w.app), fmt.Sprintf(
					`{"requests":[{"method":"POST","url":"/api/collections/bans/records","body":{"topic":"x"}},{"method":"DELETE","url":"/api/collections/memberships/records/%s"}]}`, w.member.Id))
				require.Equal(w.t, 200, r.status, r.body)
			},
		},
		"in a transaction": {
			rule: byMembership,
			ends: func(w *world) {
				require.NoError(w.t, w.app.RunInTransaction(func(tx core.App) error {
					member, err := tx.FindRecordById("memberships", w.member.Id)
					require.NoError(w.t, err)
					member.Set("role", "y")
					require.NoError(w.t, tx.Save(member))
					require.NoError(w.t, tx.Delete(member))
					return nil
				}))
			},
		},
		"by cascade": {
			rule: byMembership,
			ends: func(w *world) { w.delete(w.room) },
		},
		"by a custom model": {
			rule: byMembership,
			ends: func(w *world) {
				m := &membership{}
				m.Id = w.member.Id
				m.MarkAsNotNew()
				w.delete(m)
			},
		},
		"by a partial record": {
			rule: byMembership,
			ends: func(w *world) {
				partial := core.NewRecord(mustCollection(w.t, w.app, "memberships"))
				partial.Id = w.member.Id
				partial.MarkAsNotNew()
				w.delete(partial)
			},
		},
		"back-relation": {
			rule: "@request.auth.id != '' && memberships_via_room.user ?= @request.auth.id",
			more: map[string]any{"collection": "rooms"},
			ends: func(w *world) { w.delete(w.member) },
			back: func(w *world) {
				newRecord(w.t, w.app, "memberships", map[string]any{"room": w.room.Id, "user": w.ann.Id})
			},
		},
		"back-relation of the auth": {
			rule: "@request.auth.memberships_via_user.room ?= @topic.id",
			ends: func(w *world) { w.delete(w.member) },
		},
		"bound record changed": {
			rule: "open = true",
			more: map[string]any{"collection": "rooms"},
			ends: func(w *world) { w.set(w.room, "open", false) },
			back: func(w *world) { w.set(w.room, "open", true) },
		},
		"relation of the bound record": {
			rule: "@request.auth.id != '' && members.id ?= @request.auth.id",
			more: map[string]any{"collection": "rooms"},
			ends: func(w *world) { w.set(w.room, "members", []string{}) },
			back: func(w *world) { w.set(w.room, "members", []string{w.ann.Id}) },
		},
		"bound record deleted": {
			rule: "",
			more: map[string]any{"collection": "rooms"},
			ends: func(w *world) { w.delete(w.room) },
		},
		"viewed record changed": {
			rule: "@view",
			more: map[string]any{"collection": "rooms"},
			ends: func(w *world) { w.set(w.room, "name", "cellar") },
			back: func(w *world) { w.set(w.room, "name", "lobby") },
		},
		"view rule changed": {
			rule: "@view",
			more: map[string]any{"collection": "rooms"},
			ends: func(w *world) {
				rooms := mustCollection(w.t, w.app, "rooms")
				rooms.ViewRule = rule("name = 'cellar'")
				w.save(rooms)
			},
		},
		"topic rule changed": {
			rule: "",
			ends: func(w *world) { w.set(w.definition(), "subscribeRule", nil) },
			back: func(w *world) { w.set(w.definition(), "subscribeRule", "") },
		},
		"topic rule deleted": {
			rule: "",
			ends: func(w *world) { w.delete(w.definition()) },
		},
		"overtaken by a more specific pattern": {
			rule: "",
			ends: func(w *world) { define(w.t, w.app, map[string]any{"pattern": w.topic}) },
		},
		"collection in the rule renamed": {
			rule: byMembership,
			ends: func(w *world) { rename(w.t, w.app, "memberships", "seats") },
			back: func(w *world) { rename(w.t, w.app, "seats", "memberships") },
		},
		"field in the rule removed": {
			rule: byMembership,
			ends: func(w *world) {
				c := mustCollection(w.t, w.app, "memberships")
				c.Fields.RemoveByName("user")
				w.save(c)
			},
		},
		"field in the rule renamed": {
			rule: byMembership,
			ends: func(w *world) {
				c := mustCollection(w.t, w.app, "memberships")
				c.Fields.GetByName("user").SetName("person")
				w.save(c)
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fields := map[string]any{"subscribeRule": sc.rule}
			for k, v := range sc.more {
				fields[k] = v
			}
			w := newWorld(t, fields, topics.Config{SweepInterval: -1})
			w.kept(w.topic)

			sc.ends(w)
			w.lost(w.topic)

			if sc.back == nil {
				return
			}
			sc.back(w)
			w.c.mustSubscribe(w.token, w.topic, "public")
			w.kept(w.topic)
		})
	}
}

type membership struct{ core.BaseModel }

func (*membership) TableName() string { return "memberships" }

func mustToken(t testing.TB, record *core.Record) string {
	t.Helper()
	token, err := record.NewAuthToken()
	require.NoError(t, err)
	return token
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

// After a revocation the key stays with the SDK: it is not told again, and a
// later submission is a fresh decision.
func TestARevokedKeyIsDecidedAnewWhenItComesBack(t *testing.T) {
	w := newWorld(t, map[string]any{"subscribeRule": byMembership}, topics.Config{SweepInterval: -1})
	w.delete(w.member)
	w.lost(w.topic)

	w.c.mustSubscribe(w.token, w.topic, "public", "public?x")
	w.c.quiet()

	newRecord(t, w.app, "memberships", map[string]any{"room": w.room.Id, "user": w.ann.Id})
	w.notify(w.topic, "not subscribed yet")
	w.c.quiet()
	w.c.mustSubscribe(w.token, w.topic, "public")
	w.kept(w.topic)
}

func TestARollbackEndsNothing(t *testing.T) {
	w := newWorld(t, map[string]any{"subscribeRule": byMembership}, topics.Config{SweepInterval: -1})
	require.Error(t, w.app.RunInTransaction(func(tx core.App) error {
		member, err := tx.FindRecordById("memberships", w.member.Id)
		require.NoError(t, err)
		require.NoError(t, tx.Delete(member))
		w.kept(w.topic)
		return errors.New("roll back")
	}))
	w.kept(w.topic)
	w.c.quiet()
}

func TestTheTokenExpires(t *testing.T) {
	w := newWorld(t, map[string]any{"subscribeRule": "@request.auth.id != ''"}, topics.Config{SweepInterval: -1})

	short, err := w.ann.NewStaticAuthToken(2 * time.Second)
	require.NoError(t, err)
	c := w.s.connect()
	c.mustSubscribe(short, w.topic, "public")
	c.quiet()

	// told at its end, not at the next message
	e := c.next()
	require.Equal(t, w.topic, e.name)
	require.Equal(t, "topic_revoked", e.notice(t).Code)
	require.Contains(t, e.notice(t).Message, "Sign in")

	w.notify(w.topic, "after")
	w.notify("public", "still")
	require.Equal(t, `"still"`, c.next().data)

	// whoever has a token that is still good is not affected
	require.Equal(t, `"after"`, w.c.next().data)
	c.mustSubscribe(w.token, w.topic)
	w.notify(w.topic, "back")
	require.Equal(t, `"back"`, c.next().data)
}

func TestTheClock(t *testing.T) {
	w := newWorld(t, map[string]any{"subscribeRule": ""}, topics.Config{SweepInterval: -1})
	events := newCollection(t, w.app, "shows", &core.DateField{Name: "until"})
	show := newRecord(t, w.app, "shows", map[string]any{"until": time.Now().Add(2 * time.Second)})
	define(t, w.app, map[string]any{"pattern": "show/{id}", "collection": events.Id, "subscribeRule": "until > @now"})
	topic := "show/" + show.Id
	w.c.drain()
	w.c.mustSubscribe(w.token, topic, "public")
	w.kept(topic)

	require.Equal(t, "topic_revoked", w.c.next().notice(t).Code)
	w.notify(topic, "after")
	w.c.quiet()
}

// Raw SQL and other processes are found by the sweep.
func TestTheSweepFindsWhatNoHookTells(t *testing.T) {
	for name, statement := range map[string]string{
		"record":     "DELETE FROM memberships",
		"auth":       "DELETE FROM users",
		"token":      "UPDATE users SET tokenKey = 'changed' || id",
		"topic rule": "UPDATE _topics SET subscribeRule = 'null' WHERE pattern = 'room/{id}'",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, map[string]any{"subscribeRule": byMembership}, topics.Config{SweepInterval: 100 * time.Millisecond})
			w.kept(w.topic)
			sql(t, w.app, statement)
			require.Equal(t, "topic_revoked", w.c.next().notice(t).Code)
			w.notify(w.topic, "after")
			w.c.quiet()
		})
	}
}

// A view collection reads tables that only its SQL names.
func TestViewCollection(t *testing.T) {
	w := newWorld(t, map[string]any{"subscribeRule": ""}, topics.Config{SweepInterval: -1})
	view := core.NewViewCollection("seats")
	view.ViewQuery = "SELECT id, room, user FROM memberships"
	w.save(view)
	define(t, w.app, map[string]any{"pattern": "seat/{id}", "subscribeRule": "@request.auth.id != '' && @collection.seats.room ?= @topic.id"})
	topic := "seat/" + w.room.Id
	w.c.drain()
	w.c.mustSubscribe(w.token, topic, "public")
	w.kept(topic)

	w.delete(w.member)
	w.lost(topic)
}

// Who is let in without a rule to ask, under AllowUnknown, is thrown out when
// there is one.
func TestAnUnknownTopicGetsARule(t *testing.T) {
	w := newWorld(t, map[string]any{"subscribeRule": ""}, topics.Config{AllowUnknown: true, SweepInterval: -1})
	w.c.mustSubscribe(w.token, "wild/1", "public")
	w.kept("wild/1")
	define(t, w.app, map[string]any{"pattern": "wild/{x}"})
	w.lost("wild/1")
}

// A foreign client that an HTTP request subscribed is held to the rule too;
// one that Go code subscribed is not.
func TestForeignClientsLoseAccess(t *testing.T) {
	w := newWorld(t, map[string]any{"subscribeRule": byMembership}, topics.Config{SweepInterval: -1})
	guarded, trusted := newForeign(w.app), newForeign(w.app, w.topic)
	(&stream{s: w.s, id: guarded.Id()}).mustSubscribe(w.token, w.topic)

	w.notify(w.topic, "before")
	require.Equal(t, `"before"`, string((<-guarded.Channel()).Data))
	require.Equal(t, `"before"`, string((<-trusted.Channel()).Data))

	w.delete(w.member)
	w.notify(w.topic, "after")
	require.Contains(t, string((<-guarded.Channel()).Data), "topic_revoked")
	require.Equal(t, `"after"`, string((<-trusted.Channel()).Data))
	require.False(t, guarded.HasSubscription(w.topic))
}

// Removing a member and publishing at once never lets the message through.
func TestRemovedThenPublishedManyTimes(t *testing.T) {
	w := newWorld(t, map[string]any{"subscribeRule": byMembership}, topics.Config{SweepInterval: -1})

	for i := range 100 {
		w.notify(w.topic, fmt.Sprint("before ", i))
		require.Equal(t, fmt.Sprintf(`"before %d"`, i), w.c.next().data)

		w.delete(w.member)
		w.notify(w.topic, "after")
		e := w.c.next()
		require.Equal(t, "topic_revoked", e.notice(t).Code, e.data)

		w.member = newRecord(t, w.app, "memberships", map[string]any{"room": w.room.Id, "user": w.ann.Id})
		w.c.mustSubscribe(w.token, w.topic, "public")
	}
}
