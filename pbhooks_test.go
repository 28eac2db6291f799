package topics_test

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/plugins/jsvm"
	"github.com/pocketbase/pocketbase/tests"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

// newJSApp serves an app with a file in pb_hooks.
func newJSApp(t *testing.T, file string) (*tests.TestApp, *server) {
	t.Helper()

	app := newApp(t, topics.Config{})
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "main.pb.js"), []byte(file), 0o600))
	require.NoError(t, jsvm.Register(app, jsvm.Config{HooksDir: dir, MigrationsDir: t.TempDir(), TypesDir: t.TempDir(), HooksPoolSize: 2}))
	return app, serve(t, app)
}

// inHook is a pb_hooks file whose route /js answers the value of the body.
func inHook(body string) string {
	return `routerAdd("GET", "/js", (e) => {
		const topics = $app.store().get("topics")
		const attempt = (action) => {
			try { return action() ?? null } catch (err) { return err.name + ": " + err.message }
		}
		return e.json(200, (() => {` + body + `})())
	})`
}

func (s *server) js(v any) {
	s.t.Helper()
	r := s.request(http.MethodGet, "/js", "", "")
	require.Equal(s.t, http.StatusOK, r.status, r.body)
	require.NoError(s.t, json.Unmarshal([]byte(r.body), v), r.body)
}

func TestPBHooks(t *testing.T) {
	app, s := newJSApp(t, inHook(`
		topics.notify($app, "club/1", {hello: "world", list: [1, 2.5, null]})
		$app.runInTransaction((txApp) => {
			topics.notify(txApp, "club/1", "committed")
			if (topics.presenceCount(txApp, "club/1") !== 1) throw new Error("count")
			if (topics.history(txApp, "club/1").messages.length !== 1) throw new Error("not sent yet")
		})
		const rolledBack = attempt(() => $app.runInTransaction((txApp) => {
			topics.notify(txApp, "club/1", "never")
			throw new Error("roll back")
		}))
		const all = topics.history($app, "club/1", {limit: 10})
		const since = topics.history($app, "club/1", {since: all.messages[0].id})
		return {
			rolledBack: rolledBack !== null,
			data: all.messages.map((m) => m.data),
			since: since.messages.map((m) => m.data),
			recovered: since.recovered,
			members: topics.presence($app, "club/1"),
			state: topics.presence($app, "club/1")[0].state.typing,
			count: topics.presenceCount($app, "club/1"),
			published: topics.stats().published,
			faults: {
				malformed: attempt(() => topics.notify($app, "a b", 1)),
				none: attempt(() => topics.presence($app, "other")),
				history: attempt(() => topics.history($app, "other")),
				app: attempt(() => topics.notify(undefined, "club/1", 1)),
				data: attempt(() => topics.notify($app, "club/1", () => 1)),
			},
		}
	`))
	define(t, app, map[string]any{"pattern": "club/{room}", "subscribeRule": "", "history": 10, "presence": true, "presenceFields": "name"})
	ann, token := newUser(t, app, "ann")
	ann.Set("name", "Ann")
	require.NoError(t, app.Save(ann))
	c := s.connect()
	c.mustSubscribe(token, key("club/1", map[string]any{"state": map[string]any{"typing": true}}))

	var got struct {
		RolledBack bool
		Data       []any
		Since      []any
		Recovered  bool
		Members    []shown
		State      bool
		Count      int
		Published  int
		Faults     map[string]string
	}
	s.js(&got)
	require.True(t, got.RolledBack)
	require.Equal(t, []any{map[string]any{"hello": "world", "list": []any{1.0, 2.5, nil}}, "committed"}, got.Data)
	require.Equal(t, []any{"committed"}, got.Since)
	require.True(t, got.Recovered)
	require.Len(t, got.Members, 1)
	require.Equal(t, ann.Id, got.Members[0].ID)
	require.Equal(t, map[string]any{"name": "Ann"}, got.Members[0].Record)
	require.Equal(t, map[string]any{"typing": true}, got.Members[0].State)
	require.True(t, got.State)
	require.Equal(t, 1, got.Count)
	require.Equal(t, 2, got.Published)
	for name, text := range map[string]string{
		"malformed": "malformed topic", "none": "tracks no members", "history": "keeps no history",
		"app": "must be the app", "data": "cannot be sent as JSON",
	} {
		require.Contains(t, got.Faults[name], text)
	}
	require.JSONEq(t, `{"hello":"world","list":[1,2.5,null]}`, c.next().data)
	require.Equal(t, `"committed"`, c.next().data)
	c.quiet()
}

// JavaScript runs on one goroutine. What it can reach of the plugin has no
// handlers for others to call, by whatever way.
func TestPBHooksReachNoHooksOfThePlugin(t *testing.T) {
	_, s := newJSApp(t, inHook(`
		const faults = {}
		for (const name of ["onJoin", "onLeave", "onOccupied", "onVacated"]) {
			faults[name] = attempt(() => topics[name]().bindFunc((e) => e.next()))
		}
		faults.option = attempt(() => topics.notify($app, "a", 1, (m) => { m.topic = "b" }))
		const values = {}
		for (const [key, value] of Object.entries($app.store().getAll())) {
			if (!key.startsWith("topics")) continue
			const names = []
			for (const name in value) names.push(name)
			values[key] = names.sort()
		}
		return {faults, values}
	`))
	c := s.connect()
	c.mustSubscribe("")

	var got struct {
		Faults map[string]string
		Values map[string][]string
	}
	s.js(&got)
	for _, name := range []string{"onJoin", "onLeave", "onOccupied", "onVacated"} {
		require.Contains(t, got.Faults[name], "TypeError", name)
	}
	require.Empty(t, got.Faults["option"], "an argument too many is not called")
	require.Equal(t, map[string][]string{
		"topics":       {"history", "notify", "presence", "presenceCount", "stats"},
		"topicsPlugin": {},
	}, got.Values)
	s.js(&got) // it lives
}

// What the store has offers functions to JavaScript only by these names, also in
// a later version.
func TestTheStoreHasNothingElseOfThePlugin(t *testing.T) {
	app := newApp(t, topics.Config{})
	var found []string
	for key, value := range app.Store().GetAll() {
		if value == nil {
			continue
		}
		v := reflect.TypeOf(value)
		if !slices.Contains([]string{"topics", "topicsPlugin"}, key) {
			require.NotContains(t, v.String(), "topics.", key)
			continue
		}
		for i := range v.NumMethod() {
			found = append(found, v.Method(i).Name)
			for arg := range v.Method(i).Type.NumIn() {
				kind := v.Method(i).Type.In(arg).Kind()
				require.NotContains(t, []reflect.Kind{reflect.Func, reflect.Slice}, kind, "a function of JavaScript is for its own goroutine")
			}
		}
		for _, field := range reflect.VisibleFields(v.Elem()) {
			require.False(t, field.IsExported(), field.Name)
		}
	}
	require.ElementsMatch(t, []string{"History", "Notify", "Presence", "PresenceCount", "Stats"}, found)
}

// A hook of JavaScript that PocketBase itself calls can send.
func TestPBHooksNotifyFromARecordHook(t *testing.T) {
	app, s := newJSApp(t, `onRecordAfterCreateSuccess((e) => {
		e.app.store().get("topics").notify(e.app, "room/1", {created: e.record.id})
		e.next()
	}, "posts")`)
	newCollection(t, app, "posts")
	define(t, app, map[string]any{"pattern": "room/{id}", "subscribeRule": ""})
	c := s.connect()
	c.mustSubscribe("", "room/1")

	var record *core.Record
	require.NoError(t, app.RunInTransaction(func(tx core.App) error {
		record = newRecord(t, tx, "posts", nil)
		return nil
	}))
	require.JSONEq(t, `{"created":"`+record.Id+`"}`, c.next().data)
}
