package main

import (
	"net/http"
	"slices"
	"testing"

	"github.com/pbtopics/topics/migrations"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tests"
)

// newApp is what the first start makes of an empty data directory.
func newApp(t testing.TB) *tests.TestApp {
	t.Helper()

	app, err := tests.NewTestApp(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	register(app)

	return app
}

func TestSeed(t *testing.T) {
	app := newApp(t)
	defer app.Cleanup()

	check := func() {
		t.Helper()

		ids := map[string]string{}
		for _, name := range []string{"ann", "bob", "eve"} {
			account, err := app.FindAuthRecordByEmail(usersCollection, name+"@example.com")
			if err != nil {
				t.Fatal(err)
			}
			if !account.ValidatePassword(demoPassword) || !account.Verified() || account.EmailVisibility() {
				t.Errorf("%s cannot sign in, is not verified or shows the e-mail", name)
			}
			ids[name] = account.Id
		}

		lobby, err := app.FindRecordById(roomsCollection, lobbyID)
		if err != nil {
			t.Fatal(err)
		}
		if members := lobby.GetStringSlice("members"); !slices.Equal(members, []string{ids["ann"], ids["bob"]}) {
			t.Errorf("members are %v", members)
		}

		rules, err := app.FindAllRecords(migrations.CollectionID)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string][2]string{}
		for _, rule := range rules {
			got[rule.GetString("pattern")] = [2]string{rule.GetString("subscribeRule"), rule.GetString("publishRule")}
		}
		want := map[string][2]string{
			"announcements": {`""`, `null`},
			"room/{id}":     {`"members.id ?= @request.auth.id"`, `"members.id ?= @request.auth.id"`},
			"user/{id}":     {`"@request.auth.id != \"\" && @request.auth.collectionName = \"users\" && @topic.id = @request.auth.id"`, `null`},
		}
		if len(got) != len(want) {
			t.Errorf("the topics are %v", got)
		}
		for pattern, rules := range want {
			if got[pattern] != rules {
				t.Errorf("%s: got %v, want %v", pattern, got[pattern], rules)
			}
		}

		superusers, err := app.CountRecords(core.CollectionNameSuperusers)
		if err != nil {
			t.Fatal(err)
		}
		if superusers != 0 {
			t.Errorf("%d superusers were seeded", superusers)
		}
	}

	check()

	// a second run, now with the plugin's validation, leaves everything as it is
	if err := seed(app); err != nil {
		t.Fatal(err)
	}
	check()

	// the seeded rules are valid
	rules, err := app.FindAllRecords(migrations.CollectionID)
	if err != nil {
		t.Fatal(err)
	}
	for _, rule := range rules {
		if err := app.Validate(rule); err != nil {
			t.Errorf("%s: %v", rule.GetString("pattern"), err)
		}
	}
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
			Name: "a guest does not leave", Method: http.MethodPost, URL: "/api/rooms/" + lobbyID + "/leave",
			ExpectedStatus: http.StatusUnauthorized, ExpectedContent: []string{`"status":401`},
		},
	} {
		scenario.TestAppFactory = newApp
		scenario.Test(t)
	}
}
