package main

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/pbtopics/topics"
	"github.com/pbtopics/topics/migrations"
	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tests"
	"github.com/pocketbase/pocketbase/tools/logger"
	"github.com/stretchr/testify/require"
)

// newApp is what the first start makes of an empty data directory.
func newApp(t testing.TB) *tests.TestApp {
	t.Helper()

	app, err := tests.NewTestApp(t.TempDir())
	require.NoError(t, err)
	register(app, topics.Config{})

	return app
}

func findAccount(t testing.TB, app core.App, name string) *core.Record {
	t.Helper()

	account, err := app.FindAuthRecordByEmail(usersCollection, name+"@example.com")
	require.NoError(t, err)

	return account
}

// memberNames are the names of the lobby's members.
func memberNames(t testing.TB, app core.App) string {
	t.Helper()

	lobby, err := app.FindRecordById(roomsCollection, lobbyID)
	require.NoError(t, err)

	return namesOf(app, lobby.GetStringSlice("members"))
}

// membersOnly is the rule of the rooms, as JSON.
const membersOnly = `"@request.auth.id != \"\" && members.id ?= @request.auth.id"`

// firstStart is what a process does with an empty data directory: the plugin and
// its validation are there when the data is seeded.
func firstStart(t testing.TB) *core.BaseApp {
	t.Helper()

	app := core.NewBaseApp(core.BaseAppConfig{DataDir: t.TempDir()})
	t.Cleanup(func() { require.NoError(t, app.ResetBootstrapState()) })
	register(app, topics.Config{})
	require.NoError(t, app.Bootstrap())
	require.NoError(t, app.RunAllMigrations())

	return app
}

// The first start has nothing to complain about.
func TestFirstStartLogsNoWarning(t *testing.T) {
	app := firstStart(t)
	warnings := func() (messages []string) {
		require.NoError(t, app.Logger().Handler().(*logger.BatchHandler).WriteAll(context.Background()))
		require.NoError(t, app.LogQuery().Select("message").AndWhere(dbx.NewExp("level >= 4")).OrderBy("rowid").Column(&messages))
		return messages
	}
	require.Empty(t, warnings())

	// it would be seen: the rule of before
	rule := findRoomRule(t, app)
	rule.Set("subscribeRule", looseMemberRule)
	require.NoError(t, app.Save(rule))
	var found []string
	require.Eventually(t, func() bool { found = warnings(); return len(found) > 0 }, 10*time.Second, time.Millisecond)
	require.Len(t, found, 1)
	require.Contains(t, found[0], "may let guests pass")
}

// A data directory that was seeded with the loose rule gets the strict one, and
// what somebody has made of it stays.
func TestStrictRules(t *testing.T) {
	app := newApp(t)
	defer app.Cleanup()

	rule := findRoomRule(t, app)
	rule.Load(map[string]any{"subscribeRule": looseMemberRule, "publishRule": "", "presenceRule": looseMemberRule})
	require.NoError(t, app.Save(rule))
	require.NoError(t, seedStrictRules(app))
	rule = findRoomRule(t, app)
	require.Equal(t, membersOnly, rule.GetString("subscribeRule"))
	require.Equal(t, `""`, rule.GetString("publishRule"))
	require.Equal(t, membersOnly, rule.GetString("presenceRule"))

	require.NoError(t, app.Delete(rule))
	require.NoError(t, seedStrictRules(app), "without the rule")
}

func TestSeed(t *testing.T) {
	app := newApp(t)
	defer app.Cleanup()

	check := func() {
		t.Helper()

		for _, name := range []string{"ann", "bob", "eve"} {
			account := findAccount(t, app, name)
			require.True(t, account.ValidatePassword(demoPassword), name)
			require.True(t, account.Verified(), name)
			require.False(t, account.EmailVisibility(), name)
		}
		require.Equal(t, "ann and bob", memberNames(t, app))

		rules, err := app.FindAllRecords(migrations.CollectionID)
		require.NoError(t, err)
		got := map[string][2]string{}
		for _, rule := range rules {
			got[rule.GetString("pattern")] = [2]string{rule.GetString("subscribeRule"), rule.GetString("publishRule")}
		}
		require.Equal(t, map[string][2]string{
			"announcements": {`""`, `null`},
			"room/{id}":     {membersOnly, membersOnly},
			"user/{id}":     {`"@request.auth.id != \"\" && @request.auth.collectionName = \"users\" && @topic.id = @request.auth.id"`, `null`},
		}, got)
		requireRoomPresence(t, app, true, membersOnly, "name")

		superusers, err := app.CountRecords(core.CollectionNameSuperusers)
		require.NoError(t, err)
		require.Zero(t, superusers)
	}

	check()

	// a second run, now with the plugin's validation, leaves everything as it is
	require.NoError(t, seed(app))
	require.NoError(t, seedStrictRules(app))
	require.NoError(t, seedPresence(app))
	check()

	// the seeded rules are valid
	rules, err := app.FindAllRecords(migrations.CollectionID)
	require.NoError(t, err)
	for _, rule := range rules {
		require.NoError(t, app.Validate(rule), rule.GetString("pattern"))
	}
}

func findRoomRule(t testing.TB, app core.App) *core.Record {
	t.Helper()

	rule, err := app.FindFirstRecordByData(migrations.CollectionID, "pattern", roomPattern)
	require.NoError(t, err)

	return rule
}

func requireRoomPresence(t testing.TB, app core.App, presence bool, rule, fields string) {
	t.Helper()

	got := findRoomRule(t, app)
	require.Equal(t, presence, got.GetBool("presence"))
	require.Equal(t, rule, got.GetString("presenceRule"))
	require.Equal(t, fields, got.GetString("presenceFields"))
}

// A data folder from before the rooms had presence gets it, unless somebody has
// made the rule their own.
func TestSeedPresence(t *testing.T) {
	app := newApp(t)
	defer app.Cleanup()

	before := map[string]any{"presence": false, "presenceRule": nil, "presenceFields": ""}

	for _, scenario := range []struct {
		name   string
		change map[string]any

		presence     bool
		rule, fields string
	}{
		{"as it was seeded", nil, true, membersOnly, "name"},
		{"with an own rule for the members", map[string]any{"presenceRule": ""}, false, `""`, ""},
		{"with an own rule for subscribing", map[string]any{"subscribeRule": ""}, false, "null", ""},
		{"with another pattern", map[string]any{"pattern": "chat/{id}"}, false, "null", ""},
	} {
		t.Run(scenario.name, func(t *testing.T) {
			rule := findRoomRule(t, app)
			original := rule.FieldsData()
			rule.Load(before)
			rule.Load(scenario.change)
			require.NoError(t, app.Save(rule))

			require.NoError(t, seedPresence(app))

			got, err := app.FindRecordById(migrations.CollectionID, rule.Id)
			require.NoError(t, err)
			require.Equal(t, scenario.presence, got.GetBool("presence"))
			require.Equal(t, scenario.rule, got.GetString("presenceRule"))
			require.Equal(t, scenario.fields, got.GetString("presenceFields"))

			got.Load(original)
			require.NoError(t, app.Save(got))
		})
	}

	require.NoError(t, app.Delete(findRoomRule(t, app)))
	require.NoError(t, seedPresence(app), "without the rule")
}

func TestRoutes(t *testing.T) {
	for _, scenario := range []tests.ApiScenario{
		{
			Name: "the page", Method: http.MethodGet, URL: "/",
			ExpectedStatus: http.StatusOK, ExpectedContent: []string{"<title>Topics chat</title>"},
		},
		{
			Name: "the SDK", Method: http.MethodGet, URL: "/vendor/pocketbase/pocketbase.es.mjs",
			ExpectedStatus: http.StatusOK, ExpectedContent: []string{"ClientResponseError"},
		},
		{
			Name: "no such file", Method: http.MethodGet, URL: "/nothing",
			ExpectedStatus: http.StatusNotFound, ExpectedContent: []string{`"status":404`},
		},
		{
			Name: "a guest does not invite", Method: http.MethodPost, URL: "/api/rooms/" + lobbyID + "/invite",
			ExpectedStatus: http.StatusUnauthorized, ExpectedContent: []string{`"status":401`},
		},
		{
			Name: "a guest does not remove", Method: http.MethodPost, URL: "/api/rooms/" + lobbyID + "/remove",
			ExpectedStatus: http.StatusUnauthorized, ExpectedContent: []string{`"status":401`},
		},
		{
			Name: "a guest does not leave", Method: http.MethodPost, URL: "/api/rooms/" + lobbyID + "/leave",
			ExpectedStatus: http.StatusUnauthorized, ExpectedContent: []string{`"status":401`},
		},
	} {
		scenario.TestAppFactory = newApp
		scenario.Test(t)
	}
}

// newRouter answers requests to the app.
func newRouter(t testing.TB, app core.App) http.Handler {
	t.Helper()

	router, err := apis.NewRouter(app)
	require.NoError(t, err)

	var mux http.Handler
	require.NoError(t, app.OnServe().Trigger(&core.ServeEvent{App: app, Router: router}, func(e *core.ServeEvent) error {
		mux, err = e.Router.BuildMux()
		return err
	}))

	return mux
}

func TestMembers(t *testing.T) {
	app := newApp(t)
	defer app.Cleanup()
	router := newRouter(t, app)

	type accounts map[string]*core.Record
	all := accounts{}
	for _, name := range []string{"ann", "bob", "eve"} {
		all[name] = findAccount(t, app, name)
	}

	post := func(by, action, body string) int {
		t.Helper()

		token, err := all[by].NewAuthToken()
		require.NoError(t, err)
		request := httptest.NewRequest(http.MethodPost, "/api/rooms/"+action, strings.NewReader(body))
		request.Header.Set("Authorization", token)
		request.Header.Set("Content-Type", "application/json")
		response := httptest.NewRecorder()
		router.ServeHTTP(response, request)

		return response.Code
	}
	remove := func(by, whom string) int {
		t.Helper()
		return post(by, lobbyID+"/remove", `{"user":"`+all[whom].Id+`"}`)
	}

	// refused, and nothing changes
	require.Equal(t, http.StatusNotFound, remove("eve", "bob"), "not a member")
	require.Equal(t, http.StatusNotFound, remove("eve", "ann"), "not a member")
	require.Equal(t, http.StatusBadRequest, remove("ann", "ann"), "that is leaving")
	require.Equal(t, http.StatusNotFound, remove("ann", "eve"), "not a member")
	require.Equal(t, http.StatusNotFound, post("ann", lobbyID+"/remove", `{}`))
	require.Equal(t, http.StatusBadRequest, post("ann", lobbyID+"/remove", `{"user":[]}`))
	require.Equal(t, http.StatusNotFound, post("ann", "nosuchroom00000/remove", `{"user":"`+all["bob"].Id+`"}`))
	require.Equal(t, "ann and bob", memberNames(t, app))

	// in a transaction: what fails later undoes it
	var transactional bool
	fail := app.OnRecordUpdateExecute(roomsCollection).BindFunc(func(e *core.RecordEvent) error {
		transactional = e.App.IsTransactional()
		return errors.Join(e.Next(), errors.New("too late"))
	})
	require.Equal(t, http.StatusBadRequest, remove("ann", "bob"))
	require.True(t, transactional)
	require.Equal(t, "ann and bob", memberNames(t, app))
	app.OnRecordUpdateExecute(roomsCollection).Unbind(fail)

	// each member may, also whoever was added only now
	require.Equal(t, http.StatusNoContent, remove("ann", "bob"))
	require.Equal(t, "ann", memberNames(t, app))
	require.Equal(t, http.StatusNotFound, remove("ann", "bob"), "twice")
	require.Equal(t, http.StatusNotFound, remove("bob", "ann"), "not a member any more")
	require.Equal(t, http.StatusBadRequest, post("ann", lobbyID+"/leave", ""), "the last member")
	require.Equal(t, http.StatusNoContent, post("ann", lobbyID+"/invite", `{"email":"eve@example.com"}`))
	require.Equal(t, http.StatusNoContent, remove("eve", "ann"))
	require.Equal(t, "eve", memberNames(t, app))
}

// The page takes a message without a sender for the server's. No client can send
// one, whatever its data is, also where a room has lost all its members.
func TestOnlyTheServerHasNoSender(t *testing.T) {
	app := newApp(t)
	defer app.Cleanup()
	router := newRouter(t, app)

	publish := func(account *core.Record) int {
		t.Helper()

		body := `{"topic":"room/` + lobbyID + `","data":{"system":"forged"},"sender":null}`
		request := httptest.NewRequest(http.MethodPost, "/api/topics/publish", strings.NewReader(body))
		request.Header.Set("Content-Type", "application/json")
		if account != nil {
			token, err := account.NewAuthToken()
			require.NoError(t, err)
			request.Header.Set("Authorization", token)
		}
		response := httptest.NewRecorder()
		router.ServeHTTP(response, request)

		return response.Code
	}

	bob := findAccount(t, app, "bob")
	require.Equal(t, http.StatusOK, publish(bob))
	require.Equal(t, http.StatusForbidden, publish(nil))
	lobby, err := app.FindRecordById(roomsCollection, lobbyID)
	require.NoError(t, err)
	lobby.Set("name", "Hall")
	require.NoError(t, app.Save(lobby))

	page, err := topics.History(app, "room/"+lobbyID, topics.HistoryOptions{})
	require.NoError(t, err)
	require.Len(t, page.Messages, 2)
	require.Equal(t, bob.Id, page.Messages[0].Sender.ID)
	require.Nil(t, page.Messages[1].Sender)
	require.JSONEq(t, `{"system":"the room is now called Hall"}`, string(page.Messages[1].Data))

	_, err = app.NonconcurrentDB().NewQuery("UPDATE rooms SET members = '[]'").Execute()
	require.NoError(t, err)
	require.Equal(t, http.StatusForbidden, publish(nil), "a room without members is nobody's")
}
