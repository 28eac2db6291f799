package topics_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tests"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
	"github.com/pbtopics/topics/migrations"
)

// Without the topic rules collection every topic is denied: it is not deleted
// by the way.
func TestTheRulesCollectionIsNotDeletedWithRules(t *testing.T) {
	deleteIt := func(s *server, token string) reply {
		return s.request(http.MethodDelete, "/api/collections/"+migrations.CollectionID, token, "")
	}
	importOthers := func(s *server, token string) reply {
		return s.request(http.MethodPut, "/api/collections/import", token,
			`{"deleteMissing":true,"collections":[{"name":"other","type":"base","fields":[]}]}`)
	}
	for way, try := range map[string]func(*server, string) reply{"delete": deleteIt, "import": importOthers} {
		for _, name := range []string{"_topics", "rules"} {
			t.Run(way+" "+name, func(t *testing.T) {
				app := newApp(t, topics.Config{})
				s := serve(t, app)
				token := newSuperuser(t, app)
				if name != "_topics" {
					rename(t, app, "_topics", name)
				}
				rules, err := app.FindCollectionByNameOrId(migrations.CollectionID)
				require.NoError(t, err)
				rule := core.NewRecord(rules)
				rule.Load(map[string]any{"pattern": "a", "subscribeRule": ""})
				require.NoError(t, app.Save(rule))
				c := s.connect()
				c.allow("", "a")

				r := try(s, token)
				require.Equal(t, http.StatusBadRequest, r.status, r.body)
				require.Equal(t, "validation_rules_not_empty", r.code("collection"), r.body)
				var answer struct{ Message string }
				require.NoError(t, json.Unmarshal([]byte(r.body), &answer))
				require.Contains(t, answer.Message, "has records", "the dashboard shows this")
				_, err = app.FindCollectionByNameOrId("other")
				require.Error(t, err, "nothing of the import was done")
				_, err = app.FindCollectionByNameOrId("users")
				require.NoError(t, err)
				s.connect().allow("", "a")

				require.NoError(t, app.Delete(rule))
				r = try(s, token)
				require.Equal(t, http.StatusNoContent, r.status, r.body)
				_, err = app.FindCollectionByNameOrId(migrations.CollectionID)
				require.Error(t, err)
			})
		}
	}

	t.Run("import with it", func(t *testing.T) {
		app := newApp(t, topics.Config{})
		s := serve(t, app)
		define(t, app, map[string]any{"pattern": "a", "subscribeRule": ""})
		exported := readPage(t, operatingPage).blocks("The collection's JSON", "", "json")[0].text
		r := s.request(http.MethodPut, "/api/collections/import", newSuperuser(t, app), `{"deleteMissing":true,"collections":`+exported+`}`)
		require.Equal(t, http.StatusNoContent, r.status, r.body)
		s.connect().allow("", "a")
	})

	t.Run("other collections", func(t *testing.T) {
		app := newApp(t, topics.Config{})
		s := serve(t, app)
		newCollection(t, app, "rooms")
		newRecord(t, app, "rooms", nil)
		require.Equal(t, http.StatusNoContent, s.request(http.MethodDelete, "/api/collections/rooms", newSuperuser(t, app), "").status)
	})

	t.Run("Go", func(t *testing.T) {
		app := newApp(t, topics.Config{})
		rule := define(t, app, map[string]any{"pattern": "a", "subscribeRule": ""})
		rules := rule.Collection()
		require.ErrorContains(t, app.Delete(rules), "has records")

		over := errors.New("over")
		require.ErrorIs(t, app.RunInTransaction(func(txApp core.App) error {
			if err := txApp.Delete(rule); err != nil {
				return err
			}
			require.NoError(t, txApp.Delete(rules), "the same transaction has emptied it")
			return over
		}), over)
		require.ErrorContains(t, app.Delete(rules), "has records")

		sql(t, app, `DROP TABLE _topics`)
		require.NoError(t, app.Delete(rules), "nothing is lost with it")
	})
}

func TestTheRulesCollectionComesBack(t *testing.T) {
	const (
		back  = "The topic rules collection was missing. It is back, but empty: the rules are in your backups only."
		taken = "The name of the topic rules collection is taken by another collection, so every topic is denied. Rename that collection and restart the app."
	)
	// start is a start on a copy of the data, which logs a line so often
	start := func(app *tests.TestApp, line string, times int) (*tests.TestApp, *server) {
		require.NoError(t, app.OnTerminate().Trigger(&core.TerminateEvent{App: app}))
		next := newAppIn(t, app.DataDir(), topics.Config{})
		before := logged(t, next, line)
		next.OnServe().Bind(&hook.Handler[*core.ServeEvent]{Priority: -1, Func: func(e *core.ServeEvent) error {
			e.App.Settings().Logs.MaxDays = 5 // the start reads the settings again
			return e.Next()
		}})
		s := serve(t, next)
		require.Eventually(t, func() bool { // v0.40 writes its log in the background
			return logged(t, next, line)-before == times
		}, 10*time.Second, 10*time.Millisecond)
		return next, s
	}

	app := newApp(t, topics.Config{})
	app, _ = start(app, back, 0)

	remove(t, app, "_topics")
	app, s := start(app, back, 1)
	define(t, app, map[string]any{"pattern": "a", "subscribeRule": "", "presence": true, "presenceFields": "name"})
	s.connect().allow("", "a")

	app, s = start(app, back, 0)
	s.connect().allow("", "a")

	// another collection has the name
	remove(t, app, "_topics")
	newCollection(t, app, "_topics")
	newRecord(t, app, "_topics", nil)
	app, s = start(app, taken, 1)
	s.connect().deny("", "a", "topic_unknown")
	kept, err := app.CountRecords("_topics")
	require.NoError(t, err)
	require.EqualValues(t, 1, kept)
}
