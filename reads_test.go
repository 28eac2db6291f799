package topics

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tests"
	"github.com/pocketbase/pocketbase/tools/subscriptions"
	"github.com/stretchr/testify/require"
)

var (
	seed   = flag.Uint64("seed", 0, "seed of the randomized tests, 0 for a new one each time")
	rounds = flag.Int("rounds", 1, "how many times as long as usual the randomized tests run")
)

func newRand(t testing.TB) *rand.Rand {
	t.Helper()
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("repeat with -seed %d", s)
	return rand.New(rand.NewPCG(s, s))
}

// newReadsApp has the collections that the rules below read.
func newReadsApp(t testing.TB) (*tests.TestApp, *Plugin) {
	t.Helper()

	app, err := tests.NewTestApp()
	require.NoError(t, err)
	t.Cleanup(app.Cleanup)
	require.NoError(t, Register(app, Config{SweepInterval: -1}))

	save := func(name string, fields ...core.Field) *core.Collection {
		c := core.NewBaseCollection(name)
		c.Fields.Add(fields...)
		require.NoError(t, app.Save(c))
		return c
	}
	relation := func(name string, to *core.Collection, many int) core.Field {
		return &core.RelationField{Name: name, CollectionId: to.Id, MaxSelect: many}
	}

	teams := save("teams", &core.TextField{Name: "plan"})
	users, err := app.FindCollectionByNameOrId("users")
	require.NoError(t, err)
	users.Fields.Add(&core.TextField{Name: "role"}, relation("team", teams, 1))
	require.NoError(t, app.Save(users))
	rooms := save("rooms", &core.TextField{Name: "kind"}, &core.NumberField{Name: "level"}, relation("members", users, 9), relation("owner", users, 1))
	save("memberships", relation("room", rooms, 1), relation("rooms", rooms, 9), relation("user", users, 1), &core.TextField{Name: "role"}, &core.NumberField{Name: "n"}, &core.JSONField{Name: "meta"})
	save("bans", &core.TextField{Name: "topic"}, relation("user", users, 1))
	view := core.NewViewCollection("seats")
	view.ViewQuery = "SELECT id, room, user FROM memberships"
	require.NoError(t, app.Save(view))

	return app, From(app)
}

func TestReadsOfARule(t *testing.T) {
	app, _ := newReadsApp(t)
	ids := map[string]string{}
	all, err := app.FindAllCollections()
	require.NoError(t, err)
	for _, c := range all {
		ids[c.Id] = c.Name
	}
	users, _ := app.FindCollectionByNameOrId("users")
	rooms, _ := app.FindCollectionByNameOrId("rooms")

	for text, want := range map[string]string{
		"": "", "@topic = 'x'": "", "@request.auth.id != ''": "", "@request.query.a = 'b' && @request.headers.c = 'd'": "",
		"@now > '2022' ": "clock", "@request.auth.role = 'x' && @hour > 3": "clock users[id=U]",
		"@collection.memberships.user ?= @request.auth.id":                                                                            "memberships[user=U]",
		"@request.auth.id ?= @collection.memberships.user":                                                                            "memberships[user=U]",
		"@collection.memberships.room ?= @topic.id && @collection.memberships.user ?= @request.auth.id":                               "memberships[room=R user=U]",
		"@collection.memberships.room.id ?= @topic.id":                                                                                "memberships[room=R]",
		"@collection.memberships.room ?= @topic.id || @collection.memberships.user ?= @request.auth.id":                               "memberships",
		"@collection.memberships.room ?= @topic.id && (@collection.memberships.role ?= 'a' || @collection.memberships.role ?= 'b')":   "memberships[room=R]",
		"@collection.memberships.room ?= @topic.id && @collection.memberships.role = 'a'":                                             "memberships",
		"@collection.memberships.room = @topic.id":                                                                                    "memberships",
		"@collection.memberships.room ?!= @topic.id":                                                                                  "memberships",
		"@collection.memberships.n ?= @topic.id":                                                                                      "memberships",
		"@collection.memberships.meta.a ?= @topic.id":                                                                                 "memberships",
		"@collection.memberships.role:lower ?= @topic.id":                                                                             "memberships",
		"@collection.memberships.rooms ?= @topic.id":                                                                                  "memberships",
		"@collection.memberships.rooms.id ?= @topic.id":                                                                               "memberships rooms[id=R]",
		"@collection.memberships:a.room ?= @topic.id && @collection.memberships:b.user ?= @request.auth.id":                           "memberships[room=R] memberships[user=U]",
		"(@collection.memberships.room ?= @topic.id && @collection.memberships.user ?= @request.auth.id) || @request.auth.role = 'x'": "memberships[room=R user=U] users[id=U]",
		"@request.auth.role = 'x' && @collection.memberships.room ?= @topic.id || @collection.memberships.room ?= 'y'":                "memberships users[id=U]",
		"@request.auth.team.plan = 'pro'":                                                                                             "teams[plan=pro] users[id=U]",
		"@request.auth.team.plan != 'pro'":                                                                                            "teams users[id=U]",
		"@request.auth.memberships_via_user.room ?= @topic.id":                                                                        "memberships[room=R user=U] users[id=U]",
		"@request.auth.memberships_via_user.role = 'x'":                                                                               "memberships[user=U] users[id=U]",
		"@collection.seats.room ?= @topic.id":                                                                                         "memberships seats",
		"geoDistance(1, 2, 3, @collection.memberships.n) > 1":                                                                         "memberships",
		"strftime('%H', @collection.memberships.role) ?= '1'":                                                                         "clock memberships",
		"@collection.memberships.room ?= @collection.rooms.id && @collection.rooms.owner ?= @request.auth.id":                         "memberships rooms[owner=U]",
	} {
		r := readsOf(app, readSchema, text, unboundBase, "", params{{"id", "R"}}, "room/R", users, "U")
		require.Equal(t, want, describe(r, ids), text)
	}

	for text, want := range map[string]string{
		"":                               "rooms[id=R]",
		"kind = 'x'":                     "rooms[id=R]",
		"members.id ?= @request.auth.id": "rooms[id=R] users[id=U]",
		"members.role ?= 'x'":            "rooms[id=R] users[role=x]",
		"members.role = 'x'":             "rooms[id=R] users",
		"owner = @request.auth.id":       "rooms[id=R]",
		"owner.id = @request.auth.id":    "rooms[id=R]",
		"owner.role = 'x'":               "rooms[id=R] users[role=x]",
		"memberships_via_room.user ?= @request.auth.id":  "memberships[room=R user=U] rooms[id=R]",
		"memberships_via_room.user = @request.auth.id":   "memberships[room=R] rooms[id=R]",
		"memberships_via_rooms.user ?= @request.auth.id": "memberships[user=U] rooms[id=R]",
	} {
		r := readsOf(app, readSchema, text, rooms, "R", params{{"id", "R"}}, "room/R", users, "U")
		require.Equal(t, want, describe(r, ids), text)
	}

	// for a guest nothing ties to the auth record
	r := readsOf(app, readSchema, "@collection.memberships.user ?= @request.auth.id", unboundBase, "", nil, "a", nil, "")
	require.Equal(t, "memberships", describe(r, ids))
}

func describe(r reads, names map[string]string) string {
	var parts []string
	for _, table := range r.tables {
		s := names[table.collection]
		var matches []string
		for _, m := range table.matches {
			matches = append(matches, m.field+"="+m.value)
		}
		if matches != nil {
			s += "[" + strings.Join(matches, " ") + "]"
		}
		parts = append(parts, s)
	}
	slices.Sort(parts)
	if r.everything {
		parts = slices.Insert(parts, 0, "everything")
	}
	if r.clock {
		parts = slices.Insert(parts, 0, "clock")
	}
	return strings.Join(parts, " ")
}

type shapedRule struct {
	text  string
	bound bool // to a record of rooms
}

// soundnessRules are rules of all shapes that the analysis narrows or not.
var soundnessRules = []shapedRule{
	{"@collection.memberships.room ?= @topic.id && @collection.memberships.user ?= @request.auth.id", false},
	{"@collection.memberships.room = @topic.id && @collection.memberships.user = @request.auth.id", false},
	{"@collection.memberships.room ?= @topic.id || @collection.memberships.user ?= @request.auth.id", false},
	{"@collection.memberships.room ?= @topic.id && @collection.memberships.role = 'a'", false},
	{"@collection.memberships.room ?= @topic.id && (@collection.memberships.role ?= 'a' || @collection.memberships.user ?= @request.auth.id)", false},
	{"(@collection.memberships.room ?= @topic.id && @collection.memberships.user ?= @request.auth.id) || @collection.memberships.role ?= 'c'", false},
	{"@collection.memberships:x.room ?= @topic.id && @collection.memberships:y.user ?= @request.auth.id && @collection.memberships:x.role ?= @collection.memberships:y.role", false},
	{"@collection.memberships.rooms.id ?= @topic.id && @collection.memberships.user ?= @request.auth.id", false},
	{"@collection.memberships.user ?= @request.auth.id", false},
	{"@request.auth.role = 'a' && @collection.bans.topic != @topic", false},
	{"@request.auth.role = 'a' && @collection.bans.topic ?!= @topic", false},
	{"@collection.bans.user ?= @request.auth.id && @collection.bans.topic ?= @topic", false},
	{"@request.auth.team.plan = 'a'", false},
	{"@request.auth.team.plan != 'a' && @request.auth.id != ''", false},
	{"@request.auth.memberships_via_user.room ?= @topic.id", false},
	{"@request.auth.memberships_via_user.room = @topic.id", false},
	{"@request.auth.memberships_via_user.room.kind ?= 'a'", false},
	{"@collection.memberships.room ?= @collection.rooms.id && @collection.rooms.owner ?= @request.auth.id && @collection.memberships.user ?= @request.auth.id", false},
	{"@collection.rooms.members.id ?= @request.auth.id && @collection.rooms.kind ?= 'a'", false},
	{"@collection.rooms.owner.role ?= 'a' && @collection.rooms.id ?= @topic.id", false},
	{"@collection.seats.room ?= @topic.id && @collection.seats.user ?= @request.auth.id", false},
	{"members.id ?= @request.auth.id", true},
	{"members.role ?= 'a' && kind = 'a'", true},
	{"members.role = 'a'", true},
	{"members:length > 1 || owner = @request.auth.id", true},
	{"owner.team.plan = 'a'", true},
	{"memberships_via_room.user ?= @request.auth.id", true},
	{"memberships_via_room.user = @request.auth.id", true},
	{"memberships_via_rooms.user ?= @request.auth.id && level > 1", true},
	{"memberships_via_room.user.role ?= 'a' || @collection.bans.topic ?= @topic", true},
	{"kind:lower = 'a' && @collection.memberships.room ?= id && @collection.memberships.user ?= @request.auth.id", true},
}

// saveRules saves the i-th rule for the topics r{i}/{id}.
func saveRules(t testing.TB, app core.App, rules []shapedRule) {
	t.Helper()
	for i, r := range rules {
		record := core.NewRecord(mustFind(t, app, "_topics"))
		record.Set("pattern", fmt.Sprintf("r%d/{id}", i))
		record.Set("subscribeRule", r.text)
		if r.bound {
			record.Set("collection", "rooms")
		}
		require.NoError(t, app.Save(record), r.text)
	}
}

// A write that changes a decision has touched its grant, whatever the rule.
func TestNoWriteThatMattersIsMissed(t *testing.T) {
	app, p := newReadsApp(t)
	random := newRand(t)

	saveRules(t, app, soundnessRules)

	d := newDice(t, app, random)
	var grants []*grant
	for i := range soundnessRules {
		for _, room := range d.ids["rooms"] {
			for _, user := range append(d.records("users"), nil) {
				auth := credentials{}
				if user != nil {
					auth = credentialsFor(user)
				}
				grants = append(grants, p.grants.acquire(app, actionSubscribe, fmt.Sprintf("r%d/%s", i, room), subscriptions.SubscriptionOptions{}, auth))
			}
		}
	}

	decisions := map[*grant]bool{}
	changes := 0
	steps := 5 * *rounds
	for step := range steps {
		marks := map[*grant]uint64{}
		for _, g := range grants {
			marks[g] = g.marked.Load()
		}

		what := "the beginning"
		if step > 0 {
			what = d.write()
		}

		for _, g := range grants {
			touched := g.marked.Load() != marks[g]
			allowed := p.decideGrant(g).denial == nil
			if step > 0 && allowed != decisions[g] {
				changes++
				require.True(t, touched, "%s changed %s for %q to %v, and did not touch it", what, g.key.topic, g.key.auth.id, allowed)
			}
			decisions[g] = allowed
		}
	}
	require.Greater(t, changes, steps/3, "the writes must matter")
	t.Logf("%d decisions changed in %d writes over %d grants", changes, steps, len(grants))
}

// dice writes random records.
type dice struct {
	t      testing.TB
	app    core.App
	random *rand.Rand
	ids    map[string][]string
}

func newDice(t testing.TB, app core.App, random *rand.Rand) *dice {
	d := &dice{t: t, app: app, random: random, ids: map[string][]string{}}
	for i := range 3 {
		user := core.NewRecord(mustFind(t, app, "users"))
		user.SetEmail(fmt.Sprintf("dice%d@topics.test", i))
		SetCheapPassword(user, "1234567890")
		require.NoError(t, app.Save(user))
		d.ids["users"] = append(d.ids["users"], user.Id)
	}
	for _, name := range []string{"teams", "rooms", "rooms", "memberships", "bans"} {
		d.create(name)
	}
	return d
}

func mustFind(t testing.TB, app core.App, name string) *core.Collection {
	t.Helper()
	c, err := app.FindCollectionByNameOrId(name)
	require.NoError(t, err)
	return c
}

func (d *dice) records(name string) []*core.Record {
	d.t.Helper()
	records, err := d.app.FindRecordsByIds(name, d.ids[name])
	require.NoError(d.t, err)
	return records
}

// one of the ids, or none
func (d *dice) id(name string) string {
	ids := d.ids[name]
	if i := d.random.IntN(len(ids) + 1); i < len(ids) {
		return ids[i]
	}
	return ""
}

func (d *dice) some(name string) []string {
	var some []string
	for _, id := range d.ids[name] {
		if d.random.IntN(2) == 0 {
			some = append(some, id)
		}
	}
	return some
}

func (d *dice) letter() string { return string(rune('a' + d.random.IntN(3))) }

func (d *dice) fill(record *core.Record) {
	switch record.Collection().Name {
	case "teams":
		record.Set("plan", d.letter())
	case "users":
		record.Set("role", d.letter())
		record.Set("team", d.id("teams"))
	case "rooms":
		record.Set("kind", d.letter())
		record.Set("level", d.random.IntN(3))
		record.Set("members", d.some("users"))
		record.Set("owner", d.id("users"))
	case "memberships":
		record.Set("room", d.id("rooms"))
		record.Set("rooms", d.some("rooms"))
		record.Set("user", d.id("users"))
		record.Set("role", d.letter())
	case "bans":
		record.Set("topic", fmt.Sprintf("r%d/%s", d.random.IntN(len(soundnessRules)), d.id("rooms")))
		record.Set("user", d.id("users"))
	}
}

func (d *dice) create(name string) {
	d.t.Helper()
	record := core.NewRecord(mustFind(d.t, d.app, name))
	d.fill(record)
	require.NoError(d.t, d.app.Save(record))
	d.ids[name] = append(d.ids[name], record.Id)
}

// write does one random write, alone or with others in a transaction.
func (d *dice) write() string {
	d.t.Helper()

	if d.random.IntN(5) > 0 {
		return d.one()
	}
	var what []string
	outer := d.app
	require.NoError(d.t, outer.RunInTransaction(func(tx core.App) error {
		d.app = tx
		defer func() { d.app = outer }()
		for range 1 + d.random.IntN(3) {
			what = append(what, d.one())
		}
		return nil
	}))
	return "the transaction of " + strings.Join(what, ", ")
}

func (d *dice) one() string {
	d.t.Helper()

	name := []string{"memberships", "memberships", "memberships", "rooms", "users", "teams", "bans"}[d.random.IntN(7)]
	action := d.random.IntN(4)
	fixed := name == "users" || name == "rooms" // grants are about these
	if len(d.ids[name]) == 0 || action == 0 && !fixed && len(d.ids[name]) < 6 {
		d.create(name)
		return "creating one of " + name
	}

	i := d.random.IntN(len(d.ids[name]))
	record, err := d.app.FindRecordById(name, d.ids[name][i])
	require.NoError(d.t, err)
	if action == 1 && !fixed {
		require.NoError(d.t, d.app.Delete(record))
		d.ids[name] = slices.Delete(d.ids[name], i, i+1)
		return "deleting one of " + name
	}
	before := fmt.Sprint(record.FieldsData())
	d.fill(record)
	require.NoError(d.t, d.app.Save(record))
	return "changing one of " + name + " from " + before + " to " + fmt.Sprint(record.FieldsData())
}
