package topics_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tests"
	"github.com/pocketbase/pocketbase/tools/logger"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

const rulesPage = "docs/rules.md"

var everyone = []string{"ann", "bob", "carl", "dora", "guest"}

// The worked rules of docs/rules.md by their headings: the record is read from
// the page, the functions say whom it lets in.
var workedRules = map[string]func(*rulesDoc){
	"Public": func(d *rulesDoc) {
		d.subscribe("announcements", everyone...)
		d.publish("announcements", 1)
	},

	"Signed-in users": func(d *rulesDoc) {
		d.account("clients", "cleo")
		d.subscribe("lounge", "ann", "bob", "carl", "dora", "cleo")
		d.publish("lounge", 1, "ann", "bob", "carl", "dora", "cleo")
	},

	"Only me": func(d *rulesDoc) {
		d.subscribe("user/"+d.id["ann"], "ann")
		d.subscribe("user/" + d.id["ann"][:14])
		d.publish("user/"+d.id["ann"], 1)
	},

	"Members of a room": func(d *rulesDoc) {
		d.rooms()
		full := d.record("rooms", map[string]any{"members": []string{d.id["ann"], d.id["carl"]}})
		other := d.record("rooms", map[string]any{"members": []string{d.id["bob"]}})
		empty := d.record("rooms", nil)

		d.subscribe("room/"+full, "ann", "carl")
		d.publish("room/"+full, 1, "ann", "carl")
		d.subscribe("room/"+other, "bob")
		d.subscribe("room/" + empty)
		d.publish("room/"+empty, 1)
		d.nobody("room/nosuchroom00000")

		c := d.s.connect()
		c.mustSubscribe(d.token["ann"], "room/"+full)
		d.change("rooms", full, "members", []string{d.id["carl"]})
		require.NoError(d.t, topics.Notify(d.app, "room/"+full, 1))
		d.revoked(c)
	},

	"The owner of a record": func(d *rulesDoc) {
		newCollection(d.t, d.app, "documents", d.relation("owner", "users", 1))
		owned := d.record("documents", map[string]any{"owner": d.id["ann"]})
		orphan := d.record("documents", nil)

		d.subscribe("document/"+owned, everyone...)
		d.publish("document/"+owned, 1, "ann")
		d.subscribe("document/"+orphan, everyone...)
		d.publish("document/"+orphan, 1)
		d.nobody("document/nosuchdocument0")
	},

	"Whoever can view the record": func(d *rulesDoc) {
		articles := newCollection(d.t, d.app, "articles", d.relation("author", "users", 1), &core.BoolField{Name: "public"})
		articles.ViewRule = rule("public = true || author = @request.auth.id")
		require.NoError(d.t, d.app.Save(articles))
		draft := d.record("articles", map[string]any{"author": d.id["ann"]})
		public := d.record("articles", map[string]any{"author": d.id["ann"], "public": true})

		d.subscribe("article/"+draft, "ann")
		d.subscribe("article/"+public, everyone...)
		d.nobody("article/nosucharticle00")

		articles.ViewRule = nil
		require.NoError(d.t, d.app.Save(articles))
		d.subscribe("article/" + public)
	},

	"A parent record": func(d *rulesDoc) {
		d.rooms()
		newCollection(d.t, d.app, "threads", d.relation("room", "rooms", 1), &core.BoolField{Name: "closed"})
		room := d.record("rooms", map[string]any{"members": []string{d.id["ann"], d.id["carl"]}})
		empty := d.record("rooms", nil)
		open := d.record("threads", map[string]any{"room": room})
		closed := d.record("threads", map[string]any{"room": room, "closed": true})

		d.subscribe("thread/"+open, "ann", "carl")
		d.publish("thread/"+open, 1, "ann", "carl")
		d.subscribe("thread/"+closed, "ann", "carl")
		d.publish("thread/"+closed, 1)
		for _, fields := range []map[string]any{nil, {"room": empty}} {
			thread := d.record("threads", fields)
			d.subscribe("thread/" + thread)
			d.publish("thread/"+thread, 1)
		}
	},

	"A role": func(d *rulesDoc) {
		d.userField(&core.SelectField{Name: "role", Values: []string{"staff", "admin", "visitor"}})
		d.account("clients", "cleo") // has no such field
		d.update("ann", "role", "staff")
		d.update("carl", "role", "admin")
		d.update("dora", "role", "visitor")

		d.subscribe("office/1", "ann", "carl")
		d.publish("office/1", 1, "carl")
	},

	"A paid plan": func(d *rulesDoc) {
		d.plans()
		d.subscribe("pro/a/b")

		d.record("plans", map[string]any{"level": "pro", "until": "2999-01-01 00:00:00.000Z"}) // nobody's
		d.record("plans", map[string]any{"user": d.id["ann"], "level": "pro", "until": "2020-01-01 00:00:00.000Z"})
		d.record("plans", map[string]any{"user": d.id["ann"], "level": "pro", "until": "2999-01-01 00:00:00.000Z"})
		// neither of bob's plans is both
		d.record("plans", map[string]any{"user": d.id["bob"], "level": "pro", "until": "2020-01-01 00:00:00.000Z"})
		d.record("plans", map[string]any{"user": d.id["bob"], "level": "free", "until": "2999-01-01 00:00:00.000Z"})
		d.record("plans", map[string]any{"user": d.id["carl"], "level": "pro"}) // no end is no plan
		d.subscribe("pro/a/b", "ann")
	},

	"A time window": func(d *rulesDoc) {
		newCollection(d.t, d.app, "events", &core.DateField{Name: "opens"}, &core.DateField{Name: "closes"})
		const past, future = "2020-01-01 00:00:00.000Z", "2999-01-01 00:00:00.000Z"
		open := d.record("events", map[string]any{"opens": past, "closes": future})
		d.subscribe("event/"+open, "ann", "bob", "carl", "dora")
		d.publish("event/"+open, 1, "ann", "bob", "carl", "dora")

		c := d.s.connect()
		c.mustSubscribe(d.token["ann"], "event/"+open)
		closes := time.Now().Add(300 * time.Millisecond)
		d.change("events", open, "closes", closes)
		d.revoked(c)
		require.WithinRange(d.t, time.Now(), closes, closes.Add(patience/2))

		for _, fields := range []map[string]any{
			{"opens": past, "closes": past},
			{"opens": future, "closes": future},
			{"opens": past},
			nil,
		} {
			event := d.record("events", fields)
			d.subscribe("event/" + event)
			d.publish("event/"+event, 1)
		}
	},

	"A team through a join collection": func(d *rulesDoc) {
		d.memberships()
		red, blue := d.record("teams", nil), d.record("teams", nil)
		d.subscribe("team/" + red)

		d.record("memberships", map[string]any{"team": red}) // of nobody
		d.record("memberships", map[string]any{"user": d.id["carl"]})
		d.subscribe("team/" + red)

		d.record("memberships", map[string]any{"team": red, "user": d.id["ann"]})
		d.record("memberships", map[string]any{"team": blue, "user": d.id["bob"]})
		d.subscribe("team/"+red, "ann")
		d.subscribe("team/"+blue, "bob")
		d.subscribe("team/nosuchteam00000")
	},

	"A role in a team": func(d *rulesDoc) {
		d.memberships()
		red, blue := d.record("teams", nil), d.record("teams", nil)
		d.subscribe("board/" + red)

		d.record("memberships", map[string]any{"team": red, "role": "owner"}) // nobody is the owner
		d.record("memberships", map[string]any{"team": red, "user": d.id["bob"], "role": "member"})
		d.record("memberships", map[string]any{"team": blue, "user": d.id["bob"], "role": "owner"})
		d.record("memberships", map[string]any{"team": red, "user": d.id["ann"], "role": "owner"})
		d.subscribe("board/"+red, "ann", "bob")
		d.publish("board/"+red, 1, "ann")
		d.subscribe("board/"+blue, "bob")
		d.publish("board/"+blue, 1, "bob")
		d.nobody("board/nosuchteam00000")
	},

	"People who share a team": func(d *rulesDoc) {
		d.memberships()
		d.subscribe("status/" + d.id["ann"])

		red, blue := d.record("teams", nil), d.record("teams", nil)
		d.record("memberships", map[string]any{"team": red, "user": d.id["ann"]})
		d.record("memberships", map[string]any{"team": red, "user": d.id["carl"]})
		d.record("memberships", map[string]any{"team": blue, "user": d.id["bob"]})
		d.record("memberships", map[string]any{"user": d.id["dora"]})
		d.subscribe("status/"+d.id["ann"], "ann", "carl")
		d.subscribe("status/"+d.id["bob"], "bob")
		d.subscribe("status/nobody")
	},

	"A conversation of two": func(d *rulesDoc) {
		topic := fmt.Sprintf("dm/%s/%s", d.id["ann"], d.id["carl"])
		d.subscribe(topic, "ann", "carl")
		d.publish(topic, 1, "ann", "carl")
		d.refuse("topic_malformed", "dm//"+d.id["ann"])
		d.refuse("topic_unknown", "dm/"+d.id["ann"])
	},

	"Everyone but the banned": func(d *rulesDoc) {
		newCollection(d.t, d.app, "halls", d.relation("banned", "users", 10))
		strict := d.record("halls", map[string]any{"banned": []string{d.id["bob"], d.id["carl"]}})
		open := d.record("halls", nil)
		d.subscribe("hall/"+strict, "ann", "dora")
		d.subscribe("hall/"+open, "ann", "bob", "carl", "dora")
	},

	"An invitation": func(d *rulesDoc) {
		newCollection(d.t, d.app, "parties", &core.TextField{Name: "secret"})
		party := "party/" + d.record("parties", map[string]any{"secret": "plum"})
		open := "party/" + d.record("parties", nil)

		d.subscribe(key(party, map[string]any{"secret": "plum"}), everyone...)
		d.subscribe(key(party, map[string]any{"secret": "Plum"}))
		d.subscribe(key(party, map[string]any{"secret": ""}))
		d.subscribe(party)
		d.subscribe(key(open, map[string]any{"secret": ""}))
		d.subscribe(open)
	},

	"A part of a tree": func(d *rulesDoc) {
		d.verify("ann")
		d.subscribe("files/public/2026/plan.txt", everyone...)
		d.subscribe("files/Public/x", everyone...) // LIKE ignores case
		d.subscribe("files/public", "ann")
		d.subscribe("files/private/public/x", "ann")
		d.refuse("topic_unknown", "files")
	},

	"Only some payloads": func(d *rulesDoc) {
		d.subscribe("shout", everyone...)
		d.publish("shout", map[string]any{"from": d.id["ann"], "text": "hello"}, "ann")
		d.publish("shout", map[string]any{"from": "", "text": "hello"})
		d.publish("shout", map[string]any{"text": "hello"})
		d.publish("shout", map[string]any{"from": d.id["ann"], "text": ""})
		d.publish("shout", map[string]any{"from": d.id["ann"]})
		d.publish("shout", "text")
	},
}

// The traps of docs/rules.md by their headings: filters are what the page shows.
var ruleTraps = map[string]func(d *rulesDoc, filters []string){
	"Guests and empty sides": func(d *rulesDoc, filters []string) {
		d.rooms()
		d.define("room/{id}", "rooms", filters[0])
		empty := "room/" + d.record("rooms", nil)
		d.subscribe(empty, "guest")
		require.Equal(d.t, 1, d.warnings("may let guests pass"))
		d.define("room/{id}", "rooms", filters[1])
		d.subscribe(empty)
		require.Equal(d.t, 1, d.warnings("may let guests pass"))

		d.memberships()
		d.define("team/{x}", "", "@collection.memberships.user ?= @request.auth.id")
		d.subscribe("team/1", "guest")
		d.record("memberships", map[string]any{"user": d.id["ann"]})
		d.subscribe("team/1", "ann")
		d.record("memberships", nil)
		d.subscribe("team/1", "ann", "guest")
	},

	"Any and all": func(d *rulesDoc, filters []string) {
		d.rooms()
		alone := "room/" + d.record("rooms", map[string]any{"members": []string{d.id["ann"]}})
		both := "room/" + d.record("rooms", map[string]any{"members": []string{d.id["ann"], d.id["bob"]}})
		d.define("room/{id}", "rooms", filters[0])
		d.subscribe(alone, "ann")
		d.subscribe(both)
		d.define("room/{id}", "rooms", filters[1])
		d.subscribe(alone, "ann")
		d.subscribe(both, "ann", "bob")
		d.define("room/{id}", "rooms", `@request.auth.id != "" && members ?= @request.auth.id`)
		d.subscribe(both)
	},

	"Two terms, one row": func(d *rulesDoc, filters []string) {
		d.plans()
		d.record("plans", map[string]any{"user": d.id["ann"], "level": "pro"})
		d.record("plans", map[string]any{"user": d.id["bob"], "level": "free"})
		d.define("a", "", filters[0])
		d.subscribe("a", "ann", "bob")
		d.define("a", "", filters[1])
		d.subscribe("a", "ann")
	},

	"Parameters are text": func(d *rulesDoc, filters []string) {
		d.define("a/{x}", "", filters[0])
		d.subscribe("a/3", everyone...)
		d.define("a/{x}", "", "@topic.x = 3")
		d.subscribe("a/3")
		d.define("a/{x}", "", filters[1])
		d.subscribe("a/3")
		d.subscribe("a/11", everyone...)

		newCollection(d.t, d.app, "floors", &core.NumberField{Name: "number"})
		low := d.record("floors", map[string]any{"number": 3})
		high := d.record("floors", map[string]any{"number": 11})
		d.define("floor/{id}", "floors", "number > 10")
		d.subscribe("floor/" + low)
		d.subscribe("floor/"+high, everyone...)
	},

	"Like is contains": func(d *rulesDoc, filters []string) {
		d.define("a/{x}", "", filters[0])
		for _, x := range []string{"public", "public-1", "not-PUBLIC"} {
			d.subscribe("a/"+x, everyone...)
		}
		d.define("a/{x}", "", filters[1])
		d.subscribe("a/public-1", everyone...)
		d.subscribe("a/not-public")
		d.define("a/{x}", "", `@topic.x ~ "p_blic%"`)
		d.subscribe("a/public-1", everyone...)
		d.define("a/{x}", "", `@topic.x ~ "p_blic"`)
		d.subscribe("a/public-1")
		d.define("a/{x}", "", `"secret-plans" ~ @topic.x`)
		d.subscribe("a/s", everyone...)
		d.subscribe("a/x")
	},

	"The client chooses query and headers": func(d *rulesDoc, filters []string) {
		d.userField(&core.TextField{Name: "role"})
		d.update("ann", "role", "admin")
		d.define("a", "", filters[0])
		d.subscribe(key("a", map[string]any{"role": "admin"}), everyone...)
		d.define("a", "", filters[1])
		d.subscribe(key("a", map[string]any{"role": "admin"}), "ann")
	},
}

func TestDocsRules(t *testing.T) {
	page := readPage(t, rulesPage)
	require.GreaterOrEqual(t, len(workedRules), 12)
	require.ElementsMatch(t, page.headings("Worked rules"), slices.Collect(maps.Keys(workedRules)), "each worked rule has a test, and each test a worked rule")
	require.ElementsMatch(t, page.headings("Traps"), slices.Collect(maps.Keys(ruleTraps)), "each trap has a test, and each test a trap")

	seed := seedRulesDocs(t)
	for heading, check := range workedRules {
		t.Run(heading, func(t *testing.T) {
			t.Parallel()
			blocks := page.blocks("Worked rules", heading, "json")
			require.Len(t, blocks, 1)
			var fields map[string]any
			require.NoError(t, json.Unmarshal([]byte(blocks[0].text), &fields), "%s", blocks[0])

			d := newRulesDoc(t, seed)
			d.fields = fields
			check(d)
			require.True(t, d.defined, "the test has not met the rule")
			require.Zero(t, d.warnings("may let guests pass"), "a worked rule that logs a warning")
		})
	}

	for heading, check := range ruleTraps {
		t.Run(heading, func(t *testing.T) {
			t.Parallel()
			var filters []string
			for _, b := range page.blocks("Traps", heading, "text") {
				filters = append(filters, b.text)
			}
			require.NotEmpty(t, filters)
			check(newRulesDoc(t, seed), filters)
		})
	}
}

// rulesDoc is the world that a rule of the page is tried in: ann, bob, carl
// and dora of the collection users, and a guest.
type rulesDoc struct {
	t   *testing.T
	app *tests.TestApp
	s   *server

	fields  map[string]any // of the worked rule
	defined bool

	id    map[string]string
	token map[string]string // by name; the guest's is empty
	root  string

	markers int           // in the log
	logged  chan struct{} // has room for one: something was written to the log
}

// seedRulesDocs makes the data directory that each world begins with a copy of.
func seedRulesDocs(t *testing.T) string {
	t.Helper()

	dir := t.TempDir()
	app := core.NewBaseApp(core.BaseAppConfig{DataDir: dir})
	require.NoError(t, app.Bootstrap())
	require.NoError(t, app.RunAllMigrations())

	require.NoError(t, app.Save(core.NewAuthCollection("clients")))
	for collection, names := range map[string][]string{
		"users":                       {"ann", "bob", "carl", "dora"},
		"clients":                     {"cleo"},
		core.CollectionNameSuperusers: {"root"},
	} {
		c, err := app.FindCollectionByNameOrId(collection)
		require.NoError(t, err)
		c.Fields.GetByName(core.FieldNamePassword).(*core.PasswordField).Cost = 4 // the fastest
		require.NoError(t, app.Save(c))
		for _, name := range names {
			newAuth(t, app, collection, name)
		}
	}

	require.NoError(t, app.OnTerminate().Trigger(&core.TerminateEvent{App: app}))
	require.NoError(t, app.ResetBootstrapState())
	return dir
}

func newRulesDoc(t *testing.T, seed string) *rulesDoc {
	t.Helper()

	app, err := tests.NewTestApp(seed)
	require.NoError(t, err)
	t.Cleanup(app.Cleanup)
	require.NoError(t, topics.Register(app, topics.Config{}))

	d := &rulesDoc{t: t, app: app, id: map[string]string{}, token: map[string]string{"guest": ""}, logged: make(chan struct{}, 1)}
	app.OnModelAfterCreateSuccess(core.LogsTableName).BindFunc(func(e *core.ModelEvent) error {
		select {
		case d.logged <- struct{}{}:
		default:
		}
		return e.Next()
	})
	d.s = serve(t, app)
	app.Settings().Logs.MaxDays = 1 // test apps keep none
	for _, name := range []string{"ann", "bob", "carl", "dora"} {
		d.account("users", name)
	}
	root, err := app.FindAuthRecordByEmail(core.CollectionNameSuperusers, "root@topics.test")
	require.NoError(t, err)
	d.root, err = root.NewAuthToken()
	require.NoError(t, err)
	return d
}

// account lets somebody of the seed take part.
func (d *rulesDoc) account(collection, name string) {
	d.t.Helper()

	record, err := d.app.FindAuthRecordByEmail(collection, name+"@topics.test")
	require.NoError(d.t, err)
	d.id[name] = record.Id
	d.token[name], err = record.NewAuthToken()
	require.NoError(d.t, err)
}

func (d *rulesDoc) userField(field core.Field) {
	d.t.Helper()

	users, err := d.app.FindCollectionByNameOrId("users")
	require.NoError(d.t, err)
	users.Fields.Add(field)
	require.NoError(d.t, d.app.Save(users))
}

func (d *rulesDoc) user(name string) *core.Record {
	d.t.Helper()

	user, err := d.app.FindRecordById("users", d.id[name])
	require.NoError(d.t, err)
	return user
}

func (d *rulesDoc) update(name, field string, value any) {
	d.t.Helper()

	user := d.user(name)
	user.Set(field, value)
	require.NoError(d.t, d.app.Save(user))
}

func (d *rulesDoc) verify(name string) {
	d.t.Helper()

	user := d.user(name)
	user.SetVerified(true)
	require.NoError(d.t, d.app.Save(user))
}

func (d *rulesDoc) relation(name, collection string, many int) core.Field {
	d.t.Helper()

	c, err := d.app.FindCollectionByNameOrId(collection)
	require.NoError(d.t, err)
	return &core.RelationField{Name: name, CollectionId: c.Id, MaxSelect: many}
}

func (d *rulesDoc) rooms() {
	d.t.Helper()
	newCollection(d.t, d.app, "rooms", d.relation("members", "users", 10))
}

func (d *rulesDoc) plans() {
	d.t.Helper()
	newCollection(d.t, d.app, "plans", d.relation("user", "users", 1), &core.TextField{Name: "level"}, &core.DateField{Name: "until"})
}

func (d *rulesDoc) memberships() {
	d.t.Helper()
	newCollection(d.t, d.app, "teams")
	newCollection(d.t, d.app, "memberships", d.relation("team", "teams", 1), d.relation("user", "users", 1), &core.TextField{Name: "role"})
}

func (d *rulesDoc) record(collection string, fields map[string]any) (id string) {
	d.t.Helper()
	return newRecord(d.t, d.app, collection, fields).Id
}

func (d *rulesDoc) change(collection, id, field string, value any) {
	d.t.Helper()

	record, err := d.app.FindRecordById(collection, id)
	require.NoError(d.t, err)
	record.Set(field, value)
	require.NoError(d.t, d.app.Save(record))
}

// revoked expects that the client has lost its topic, and that nothing else
// came.
func (d *rulesDoc) revoked(c *stream) {
	d.t.Helper()

	n := c.next().notice(d.t)
	require.Equal(d.t, "revoked", n.Type)
	require.Equal(d.t, "topic_revoked", n.Code)
	c.quiet()
}

// define saves a rule to subscribe in place of the last one of that pattern.
func (d *rulesDoc) define(pattern, collection, subscribe string) {
	d.t.Helper()

	if old, err := d.app.FindFirstRecordByData("_topics", "pattern", pattern); err == nil {
		require.NoError(d.t, d.app.Delete(old))
	}
	define(d.t, d.app, map[string]any{"pattern": pattern, "collection": collection, "subscribeRule": subscribe})
}

// worked saves the worked rule, which needs the collections that it reads.
func (d *rulesDoc) worked() {
	d.t.Helper()

	if d.fields != nil && !d.defined {
		d.defined = true
		define(d.t, d.app, d.fields)
	}
}

// subscribe expects that of all people exactly these, and superusers, may
// subscribe to the key.
func (d *rulesDoc) subscribe(key string, names ...string) {
	d.t.Helper()
	d.worked()

	for name, token := range d.token {
		if slices.Contains(names, name) {
			d.s.connect().allow(token, key)
		} else {
			d.s.connect().deny(token, key, "topic_denied")
		}
	}
	d.s.connect().allow(d.root, key)
}

// publish expects that of all people exactly these, and superusers, may
// publish data to the topic.
func (d *rulesDoc) publish(topic string, data any, names ...string) {
	d.t.Helper()
	d.worked()

	body, err := json.Marshal(map[string]any{"topic": topic, "data": data})
	require.NoError(d.t, err)
	for name, token := range d.token {
		r := d.s.publish(token, string(body))
		if slices.Contains(names, name) {
			require.Equal(d.t, 200, r.status, "%s: %s", name, r.body)
		} else {
			require.Equal(d.t, "topic_denied", r.code("topic"), "%s: %s", name, r.body)
		}
	}
	require.Equal(d.t, 200, d.s.publish(d.root, string(body)).status)
}

// nobody expects that not even superusers may do anything.
func (d *rulesDoc) nobody(topic string) {
	d.t.Helper()
	d.refuse("topic_denied", topic)
}

func (d *rulesDoc) refuse(code, topic string) {
	d.t.Helper()
	d.worked()

	for _, token := range append(slices.Collect(maps.Values(d.token)), d.root) {
		d.s.connect().deny(token, topic, code)
		require.Equal(d.t, code, d.s.publish(token, fmt.Sprintf(`{"topic":%q,"data":1}`, topic)).code("topic"))
	}
}

// warnings counts the lines of the app's log with that text. The log is
// written in the background: a line of its own tells when it is complete.
func (d *rulesDoc) warnings(text string) int {
	d.t.Helper()

	count := func(text string) (found int) {
		require.NoError(d.t, d.app.LogQuery().Select("count(*)").AndWhere(dbx.Like("message", text)).Row(&found))
		return found
	}

	d.markers++
	d.app.Logger().Warn("marker of the test")
	require.NoError(d.t, d.app.Logger().Handler().(*logger.BatchHandler).WriteAll(context.Background()))
	expired := time.NewTimer(patience)
	defer expired.Stop()
	for count("marker of the test") < d.markers {
		select {
		case <-d.logged:
		case <-expired.C:
			require.Fail(d.t, "the log was not written")
		}
	}

	return count(text)
}
