package topics_test

import (
	"fmt"
	"testing"

	validation "github.com/pocketbase/ozzo-validation/v4"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tests"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

// ambiguous is a rule whose two tables are one in PocketBase's query.
const ambiguous = "@collection.orders.item.name ?= 'x' && @collection.orders_item.name ?= 'y'"

// newShop returns an app whose collections have names for such rules.
func newShop(t *testing.T, config topics.Config) *tests.TestApp {
	t.Helper()

	app := newApp(t, config)
	relation := func(name string, to *core.Collection, many int) core.Field {
		return &core.RelationField{Name: name, CollectionId: to.Id, MaxSelect: many}
	}
	parts := newCollection(t, app, "parts", &core.TextField{Name: "name"})
	items := newCollection(t, app, "items", &core.TextField{Name: "name"}, relation("je", parts, 1), relation("part", parts, 1))
	newCollection(t, app, "orders", relation("item", items, 1), relation("items", items, 9), relation("item_part", parts, 1))
	newCollection(t, app, "orders_item", &core.TextField{Name: "name"})
	newCollection(t, app, "alias_o", relation("item", items, 1))

	users, err := app.FindCollectionByNameOrId("users")
	require.NoError(t, err)
	users.Fields.Add(relation("item", items, 1), relation("item_part", parts, 1))
	require.NoError(t, app.Save(users))

	return app
}

func TestAmbiguousRulesAreRefused(t *testing.T) {
	app := newShop(t, topics.Config{})
	orders, err := app.FindCollectionByNameOrId("orders")
	require.NoError(t, err)

	for _, tc := range []struct {
		collection string
		parts      []string // each for itself is a rule
	}{
		{"", []string{"@collection.orders.item.name ?= 'x'", "@collection.orders_item.name ?= 'y'"}},
		{"", []string{"@collection.orders.item.name ?= 'x'", "(@request.auth.id != '' || @collection." + orders.Id + ".item.name ?= 'z')", "@collection.orders_item.name ?= 'y'"}},
		{"", []string{"@collection.orders.item.part.name ?= 'x'", "@collection.orders.item_part.name ?= 'y'"}},
		{"", []string{"@collection.alias_o.item ?= 'x'", "@collection.alias_o:o.item ?= 'y'"}},
		{"", []string{"@collection.orders:o.item ?= 'x'", "@collection.orders:O.item ?= 'y'"}},
		{"", []string{"@collection.orders:o.item ?= 'x'", "@collection.parts:o.name ?= 'y'"}},
		{"", []string{"@request.auth.item.part.name = 'x'", "@request.auth.item_part.name = 'y'"}},
		{"", []string{"geoDistance(1, 2, @request.auth.item.part.name, 3) > 1", "@request.auth.item_part.name = 'y'"}},
		{"orders", []string{"item.part.name = 'x'", "item_part.name = 'y'"}},
		{"orders", []string{"items.part.name = 'x'", "items.je.id ?= 'y' && items.je.name = 'z'"}},
		{"items", []string{"orders_via_item.item_part.name ?= 'x'", "orders_via_item.item.part.name ?= 'y'"}},
	} {
		whole := tc.parts[0]
		for _, part := range tc.parts[1:] {
			whole += " && " + part
		}
		for field := range map[string]bool{"subscribeRule": true, "publishRule": true, "presenceRule": true} {
			record, err := newRule(app, map[string]any{"pattern": "a/{id}", "collection": tc.collection, field: whole})
			require.NoError(t, err)
			var faults validation.Errors
			require.ErrorAs(t, app.Save(record), &faults, whole)
			var coded validation.Error
			require.ErrorAs(t, faults[field], &coded, whole)
			require.Equal(t, "validation_ambiguous_rule", coded.Code(), whole)
		}

		if tc.collection == "" {
			for _, part := range tc.parts {
				record, err := newRule(app, map[string]any{"pattern": "a/{id}", "subscribeRule": part})
				require.NoError(t, err)
				require.NoError(t, app.Save(record), part)
				require.NoError(t, app.Delete(record))
			}
		}
	}

	// the name that the query gives to what is not there
	hidden := newCollection(t, app, "Topics__Unbound", &core.TextField{Name: "name"})
	unbound, err := newRule(app, map[string]any{"pattern": "a/{id}", "subscribeRule": "@collection." + hidden.Id + ".id ?= ''"})
	require.NoError(t, err)
	require.ErrorContains(t, app.Save(unbound), "Ambiguous rule")

	// the view rule of a collection, which PocketBase itself accepts
	orders.ViewRule = rule("item.part.name = 'x' && item_part.name = 'y'")
	require.NoError(t, app.Save(orders))
	record, err := newRule(app, map[string]any{"pattern": "a/{id}", "collection": "orders", "subscribeRule": "@view"})
	require.NoError(t, err)
	require.ErrorContains(t, app.Save(record), "Ambiguous rule")
}

// Where the names change after a rule was saved, or past the app, it denies.
func TestARuleThatBecomesAmbiguousDenies(t *testing.T) {
	set := func(t *testing.T, app core.App, collection string, change func(*core.Collection)) {
		t.Helper()
		c, err := app.FindCollectionByNameOrId(collection)
		require.NoError(t, err)
		change(c)
		require.NoError(t, app.Save(c))
	}
	view := func(text string) func(*core.Collection) {
		return func(c *core.Collection) { c.ViewRule = rule(text) }
	}

	for name, tc := range map[string]struct {
		fields  map[string]any
		prepare func(t *testing.T, app core.App, fields map[string]any)
		breaks  func(t *testing.T, app core.App)
	}{
		"a collection is renamed": {
			map[string]any{},
			func(t *testing.T, app core.App, fields map[string]any) {
				c, err := app.FindCollectionByNameOrId("orders_item")
				require.NoError(t, err)
				rename(t, app, "orders_item", "things")
				fields["subscribeRule"] = "@collection.orders.item.name ?!= 'x' || @collection." + c.Id + ".name ?!= 'y'"
				fields["publishRule"] = fields["subscribeRule"]
			},
			func(t *testing.T, app core.App) { rename(t, app, "things", "orders_item") },
		},
		"the view rule changes": {
			map[string]any{"collection": "orders", "subscribeRule": "@view"},
			func(t *testing.T, app core.App, _ map[string]any) { set(t, app, "orders", view("id != ''")) },
			func(t *testing.T, app core.App) {
				set(t, app, "orders", view("item.part.name = '' || item_part.name = ''"))
			},
		},
		"written past the app": {
			map[string]any{"subscribeRule": "", "publishRule": ""},
			nil,
			func(t *testing.T, app core.App) {
				sql(t, app, `UPDATE _topics SET subscribeRule = '"@collection.orders.item.name ?!= 1 || @collection.orders_item.name ?!= 2"'`)
				sql(t, app, `UPDATE _topics SET publishRule = subscribeRule`)
				newCollection(t, app, "bump")
			},
		},
		"a rule without a plan": {
			map[string]any{"collection": "orders", "subscribeRule": "@view"},
			func(t *testing.T, app core.App, _ map[string]any) { set(t, app, "orders", view("id != ''")) },
			func(t *testing.T, app core.App) {
				set(t, app, "orders", view("item.part.name = '' || item_part.name = '' || @now > '2022'"))
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			app := newShop(t, topics.Config{SweepInterval: -1})
			s := serve(t, app)
			order := newRecord(t, app, "orders", map[string]any{})
			if tc.prepare != nil {
				tc.prepare(t, app, tc.fields)
			}
			tc.fields["pattern"] = "order/{id}"
			define(t, app, tc.fields)
			topic := "order/" + order.Id
			_, ann := newUser(t, app, "ann")
			c, other := s.connect(), s.connect()
			c.allow(ann, topic)
			c.mustSubscribe(ann, topic)

			tc.breaks(t, app)
			require.NoError(t, topics.Notify(app, topic, "after"))
			require.Equal(t, "topic_revoked", c.next().notice(t).Code)
			other.deny(ann, topic, "topic_rule_error")
			s.connect().deny("", topic, "topic_rule_error")
			if tc.fields["publishRule"] != nil {
				r := s.publish(ann, fmt.Sprintf(`{"topic":%q,"data":1}`, topic))
				require.Equal(t, "topic_rule_error", r.code("topic"), r.body)
			}
		})
	}
}

func TestAnAmbiguousRuleInCodeDenies(t *testing.T) {
	app := newShop(t, topics.Config{Topics: []topics.Topic{
		{Pattern: "a", SubscribeRule: rule(ambiguous), PublishRule: rule(ambiguous)},
		{Pattern: "b", SubscribeRule: rule("@request.auth.item.part.name = '' && @request.auth.item_part.name = ''")},
	}})
	s := serve(t, app)
	_, ann := newUser(t, app, "ann")
	c := s.connect()
	c.deny("", "a", "topic_rule_error")
	require.Equal(t, "topic_rule_error", s.publish("", `{"topic":"a","data":1}`).code("topic"))
	c.allow("", "b") // without an account there is no such table
	s.connect().deny(ann, "b", "topic_rule_error")
}
