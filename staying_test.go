package topics_test

import (
	"errors"
	"fmt"
	"net/http"
	"testing"

	"github.com/pocketbase/pocketbase/core"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

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
