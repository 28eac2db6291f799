package topics_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
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
		articles.ViewRule = rule(`public = true || (@request.auth.id != "" && author = @request.auth.id)`)
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
