package topics_test

import (
	"errors"
	"fmt"
	"net/http"
	"testing"

	validation "github.com/pocketbase/ozzo-validation/v4"
	"github.com/pocketbase/pocketbase/core"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

func TestRecordIsValidatedOnSave(t *testing.T) {
	app := newApp(t, topics.Config{})
	newCollection(t, app, "rooms", &core.TextField{Name: "name"})
	define(t, app, map[string]any{"pattern": "taken/{a}"})

	for name, tc := range map[string]struct {
		fields map[string]any
		faults map[string]string
	}{
		"no pattern":           {map[string]any{}, map[string]string{"pattern": "validation_invalid_pattern"}},
		"syntax":               {map[string]any{"pattern": "a/{b"}, map[string]string{"pattern": "validation_invalid_pattern"}},
		"same pattern":         {map[string]any{"pattern": "taken/{a}"}, map[string]string{"pattern": "validation_duplicate_pattern"}},
		"equivalent pattern":   {map[string]any{"pattern": "taken/{other}"}, map[string]string{"pattern": "validation_duplicate_pattern"}},
		"collection name":      {map[string]any{"pattern": "rooms/{id}"}, map[string]string{"pattern": "validation_pattern_collection"}},
		"collection name case": {map[string]any{"pattern": "Rooms/{id}"}, map[string]string{"pattern": "validation_pattern_collection"}},
		"collection id":        {map[string]any{"pattern": "_pb_users_auth_"}, map[string]string{"pattern": "validation_pattern_collection"}},
		"connect":              {map[string]any{"pattern": "PB_CONNECT"}, map[string]string{"pattern": "validation_reserved_pattern"}},
		"oauth2":               {map[string]any{"pattern": "@oauth2"}, map[string]string{"pattern": "validation_reserved_pattern"}},
		"rule syntax":          {map[string]any{"pattern": "a", "subscribeRule": "x ="}, map[string]string{"subscribeRule": "validation_invalid_rule"}},
		"rule type":            {map[string]any{"pattern": "a", "publishRule": 12}, map[string]string{"publishRule": "validation_invalid_rule"}},
		"rule type list":       {map[string]any{"pattern": "a", "publishRule": []string{"x"}}, map[string]string{"publishRule": "validation_invalid_rule"}},
		"every rule":           {map[string]any{"pattern": "a", "subscribeRule": "(", "publishRule": "&&", "presenceRule": "a.b.c = 1"}, map[string]string{"subscribeRule": "validation_invalid_rule", "publishRule": "validation_invalid_rule", "presenceRule": "validation_invalid_rule"}},
		"unknown parameter":    {map[string]any{"pattern": "a/{b}", "subscribeRule": "@topic.c = 'x'"}, map[string]string{"subscribeRule": "validation_invalid_rule"}},
		"parameter modifier":   {map[string]any{"pattern": "a/{b}", "subscribeRule": "@topic.b:lower = 'x'"}, map[string]string{"subscribeRule": "validation_invalid_rule"}},
		"topic with suffix":    {map[string]any{"pattern": "a/{b}", "subscribeRule": "@topics = 'x'"}, map[string]string{"subscribeRule": "validation_invalid_rule"}},
		"bare field":           {map[string]any{"pattern": "a", "subscribeRule": "name = 'x'"}, map[string]string{"subscribeRule": "validation_invalid_rule"}},
		"bare id":              {map[string]any{"pattern": "a", "subscribeRule": "id = 'x'"}, map[string]string{"subscribeRule": "validation_invalid_rule"}},
		"missing in rule":      {map[string]any{"pattern": "a", "subscribeRule": "@collection.nope.x = 'x'"}, map[string]string{"subscribeRule": "validation_invalid_rule"}},
		"missing collection":   {map[string]any{"pattern": "a/{id}", "collection": "nope"}, map[string]string{"collection": "validation_missing_collection"}},
		"no id parameter":      {map[string]any{"pattern": "a/{x}", "collection": "rooms"}, map[string]string{"collection": "validation_missing_id_param"}},
		"id is the rest":       {map[string]any{"pattern": "a/{id...}", "collection": "rooms"}, map[string]string{"collection": "validation_missing_id_param"}},
		"missing bound field":  {map[string]any{"pattern": "a/{id}", "collection": "rooms", "subscribeRule": "nope = 1"}, map[string]string{"subscribeRule": "validation_invalid_rule"}},
		"view unbound":         {map[string]any{"pattern": "a/{id}", "subscribeRule": "@view"}, map[string]string{"subscribeRule": "validation_view_without_collection"}},
		"view to publish":      {map[string]any{"pattern": "a/{id}", "collection": "rooms", "publishRule": "@view"}, map[string]string{"publishRule": "validation_invalid_rule"}},
		"negative history":     {map[string]any{"pattern": "a", "history": -1}, map[string]string{"history": "validation_min_number_constraint"}},
	} {
		t.Run(name, func(t *testing.T) {
			record, err := newRule(app, tc.fields)
			require.NoError(t, err)

			var faults validation.Errors
			require.ErrorAs(t, app.Save(record), &faults)

			codes := map[string]string{}
			for field, fault := range faults {
				var coded validation.Error
				require.ErrorAs(t, fault, &coded, field)
				codes[field] = coded.Code()
			}
			require.Equal(t, tc.faults, codes, faults)
		})
	}

	for name, fields := range map[string]map[string]any{
		"literal":      {"pattern": "announcements", "subscribeRule": "", "publishRule": nil},
		"parameters":   {"pattern": "a/{b}/{c...}", "subscribeRule": "@topic.b = 'x' && @topic.c != 'y' && @topic ~ 'a/'"},
		"bound":        {"pattern": "room/{id}", "collection": "rooms", "subscribeRule": "@view", "publishRule": "name != '' && id = @topic.id"},
		"bound by id":  {"pattern": "hall/{id}", "collection": "_pb_users_auth_", "subscribeRule": "verified = true"},
		"body":         {"pattern": "b", "publishRule": "@request.body.data.kind = 'text' && @request.body.data.n > 1"},
		"oauth2 below": {"pattern": "@oauth2/{x}"},
		"everything":   {"pattern": "{all...}"},
		"quotes":       {"pattern": "q", "subscribeRule": `"a" = "a"`},
	} {
		t.Run(name, func(t *testing.T) { define(t, app, fields) })
	}

	// saving again changes nothing, and the record does not collide with itself
	record, err := app.FindFirstRecordByData("_topics", "pattern", "taken/{a}")
	require.NoError(t, err)
	record.Set("pattern", "taken/{b}")
	require.NoError(t, app.Save(record))
}

// The same validation meets a rule on every way into the collection.
func TestEveryWayInIsValidated(t *testing.T) {
	app := newApp(t, topics.Config{})
	s := serve(t, app)
	root := newSuperuser(t, app)

	const path = "/api/collections/_topics/records"

	r := s.request(http.MethodPost, path, root, `{"pattern":"a/{b}","subscribeRule":"@topic.c = 1"}`)
	require.Equal(t, 400, r.status)
	require.Equal(t, "validation_invalid_rule", r.code("subscribeRule"))
	require.Contains(t, r.body, "@topic.c is not a parameter of the pattern")

	r = s.request(http.MethodPost, path, root, `{"pattern":"users/{id}"}`)
	require.Equal(t, "validation_pattern_collection", r.code("pattern"))
	require.Contains(t, r.body, "for example user")

	r = s.request(http.MethodPost, path, root, `{"pattern":"a/{b}","subscribeRule":"","publishRule":null}`)
	require.Equal(t, 200, r.status, r.body)
	require.Contains(t, r.body, `"subscribeRule":""`)
	require.Contains(t, r.body, `"publishRule":null`)
	require.Contains(t, r.body, `"presenceRule":null`)

	// nobody else sees or edits rules
	_, ann := newUser(t, app, "ann")
	for _, token := range []string{"", ann} {
		require.Equal(t, 403, s.request(http.MethodGet, path, token, "").status)
		require.Equal(t, 403, s.request(http.MethodPost, path, token, `{"pattern":"x"}`).status)
	}

	// in a transaction, against what the transaction sees
	err := app.RunInTransaction(func(tx core.App) error {
		first, err := newRule(tx, map[string]any{"pattern": "tx/{a}"})
		if err != nil {
			return err
		}
		if err := tx.Save(first); err != nil {
			return err
		}
		second, err := newRule(tx, map[string]any{"pattern": "tx/{b}"})
		if err != nil {
			return err
		}
		return tx.Save(second)
	})
	var faults validation.Errors
	require.ErrorAs(t, err, &faults)
	require.Contains(t, faults, "pattern")
}

func TestTheCollectionKeepsItsFields(t *testing.T) {
	app := newApp(t, topics.Config{})

	collection, err := app.FindCollectionByNameOrId("_topics")
	require.NoError(t, err)
	require.Equal(t, "_pb_topics_", collection.Id)
	require.False(t, collection.System)
	for _, rule := range []*string{collection.ListRule, collection.ViewRule, collection.CreateRule, collection.UpdateRule, collection.DeleteRule} {
		require.Nil(t, rule)
	}

	for _, field := range []string{
		"pattern", "subscribeRule", "publishRule", "presenceRule", "collection",
		"history", "historyTTL", "presence", "feed", "feedRule", "description",
	} {
		require.NotNil(t, collection.Fields.GetByName(field), field)
		require.True(t, collection.Fields.GetByName(field).GetSystem(), field)
	}

	collection.Fields.RemoveByName("subscribeRule")
	require.Error(t, app.Save(collection))
}

// deny expects the key's notice, and that the rest of the connection works.
func (c *stream) deny(token, key, code string) {
	c.s.t.Helper()

	c.mustSubscribe(token, key)
	e := c.next()
	require.Equal(c.s.t, key, e.name)
	require.Equal(c.s.t, code, e.notice(c.s.t).Code)
	c.mustSubscribe(token) // forget the key
	c.quiet()
}

func (c *stream) allow(token, key string) {
	c.s.t.Helper()

	c.mustSubscribe(token, key)
	c.quiet()
	client, err := c.s.app.SubscriptionsBroker().ClientById(c.id)
	require.NoError(c.s.t, err)
	require.True(c.s.t, client.HasSubscription(key))
	c.mustSubscribe(token)
}

func TestChangesTakeEffectForTheNextSubscribeAndPublish(t *testing.T) {
	app := newApp(t, topics.Config{})
	s := serve(t, app)
	c := s.connect()

	can := func() bool { return s.publish("", `{"topic":"a/1","data":1}`).status == 200 }

	c.deny("", "a/1", "topic_unknown")
	record := define(t, app, map[string]any{"pattern": "a/{x}"})
	c.deny("", "a/1", "topic_denied")
	require.False(t, can())

	record.Set("subscribeRule", "")
	record.Set("publishRule", "@topic.x = '1'")
	require.NoError(t, app.Save(record))
	c.allow("", "a/1")
	require.True(t, can())

	more := define(t, app, map[string]any{"pattern": "a/1"})
	c.deny("", "a/1", "topic_denied")
	require.False(t, can())
	require.NoError(t, app.Delete(more))
	c.allow("", "a/1")

	// a rollback changes nothing, not even while the transaction is open
	err := app.RunInTransaction(func(tx core.App) error {
		record.Set("subscribeRule", nil)
		if err := tx.Save(record); err != nil {
			return err
		}
		return errors.New("roll back")
	})
	require.Error(t, err)
	c.allow("", "a/1")

	require.NoError(t, app.RunInTransaction(func(tx core.App) error {
		again, err := tx.FindRecordById("_topics", record.Id)
		if err != nil {
			return err
		}
		again.Set("subscribeRule", nil)
		return tx.Save(again)
	}))
	c.deny("", "a/1", "topic_denied")

	require.NoError(t, app.Delete(record))
	c.deny("", "a/1", "topic_unknown")
}

// What breaks later denies and logs; it never opens anything.
func TestWhatBreaksLaterDenies(t *testing.T) {
	for name, tc := range map[string]struct {
		fields map[string]any
		breaks func(t *testing.T, app core.App)
		code   string
	}{
		"bound collection renamed": {
			map[string]any{"collection": "rooms", "subscribeRule": "", "publishRule": ""},
			func(t *testing.T, app core.App) { rename(t, app, "rooms", "halls") },
			"topic_rule_error",
		},
		"collection in the rule renamed": {
			map[string]any{"subscribeRule": "@collection.rooms.id ?= @topic.id", "publishRule": "@collection.rooms.id ?= @topic.id"},
			func(t *testing.T, app core.App) { rename(t, app, "rooms", "halls") },
			"topic_rule_error",
		},
		"collection in the rule deleted": {
			map[string]any{"subscribeRule": "@collection.rooms.id ?= @topic.id", "publishRule": "@collection.rooms.id ?= @topic.id"},
			func(t *testing.T, app core.App) { remove(t, app, "rooms") },
			"topic_rule_error",
		},
		"field removed": {
			map[string]any{"collection": "rooms", "subscribeRule": "name != 'x'", "publishRule": "name != 'x'"},
			func(t *testing.T, app core.App) {
				c, err := app.FindCollectionByNameOrId("rooms")
				require.NoError(t, err)
				c.Fields.RemoveByName("name")
				require.NoError(t, app.Save(c))
			},
			"topic_rule_error",
		},
		"a rule written past the app": {
			map[string]any{"subscribeRule": "", "publishRule": ""},
			func(t *testing.T, app core.App) {
				sql(t, app, `UPDATE _topics SET subscribeRule = '"x ="', publishRule = '12'`)
			},
			"topic_rule_error",
		},
		"a pattern written past the app": {
			map[string]any{"subscribeRule": "", "publishRule": ""},
			func(t *testing.T, app core.App) { sql(t, app, `UPDATE _topics SET pattern = 'room/{id'`) },
			"topic_unknown",
		},
		"two equal patterns written past the app": {
			map[string]any{"subscribeRule": "", "publishRule": ""},
			func(t *testing.T, app core.App) {
				sql(t, app, `INSERT INTO _topics (id, pattern, subscribeRule, publishRule) VALUES ('other', 'room/{x}', '""', '""')`)
			},
			"topic_rule_error",
		},
		"the topic rules collection removed": {
			map[string]any{"subscribeRule": "", "publishRule": ""},
			func(t *testing.T, app core.App) { remove(t, app, "_topics") },
			"topic_unknown",
		},
		"the topic rules table gone": {
			map[string]any{"subscribeRule": "", "publishRule": ""},
			func(t *testing.T, app core.App) { sql(t, app, `DROP TABLE _topics`) },
			"topic_rule_error",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			app := newApp(t, topics.Config{Topics: []topics.Topic{{Pattern: "code", SubscribeRule: rule("")}}})
			s := serve(t, app)
			newCollection(t, app, "rooms", &core.TextField{Name: "name"})
			room := newRecord(t, app, "rooms", map[string]any{"name": "lobby"})
			c := s.connect()
			topic := "room/" + room.Id

			tc.fields["pattern"] = "room/{id}"
			define(t, app, tc.fields)
			c.allow("", topic)

			tc.breaks(t, app)
			// past the app nothing is seen until something else changes the rules
			newCollection(t, app, "bump")

			c.deny("", topic, tc.code)
			r := s.publish("", fmt.Sprintf(`{"topic":%q,"data":1}`, topic))
			require.Equal(t, 403, r.status)
			require.Equal(t, tc.code, r.code("topic"))

			if name != "the topic rules table gone" {
				c.allow("", "code")
			}
		})
	}
}

func rename(t *testing.T, app core.App, from, to string) {
	t.Helper()
	c, err := app.FindCollectionByNameOrId(from)
	require.NoError(t, err)
	c.Name = to
	require.NoError(t, app.Save(c))
}

func remove(t *testing.T, app core.App, name string) {
	t.Helper()
	c, err := app.FindCollectionByNameOrId(name)
	require.NoError(t, err)
	if name == "_topics" {
		sql(t, app, `DELETE FROM _topics`) // else the plugin refuses
	}
	require.NoError(t, app.Delete(c))
}

func sql(t *testing.T, app core.App, statement string) {
	t.Helper()
	_, err := app.NonconcurrentDB().NewQuery(statement).Execute()
	require.NoError(t, err)
}

// A collection that gets the name of a pattern's first segment takes the topic
// over: nothing is sent to it any more.
func TestACollectionThatTakesATopicOver(t *testing.T) {
	app := newApp(t, topics.Config{})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "room/{id}", "subscribeRule": nil, "publishRule": ""})
	newCollection(t, app, "room")

	c := s.connect()
	c.mustSubscribe("", "room/1")
	c.quiet()
	require.ErrorIs(t, topics.Notify(app, "room/1", 1), topics.ErrReservedTopic)
	require.Equal(t, "topic_reserved", s.publish("", `{"topic":"room/1","data":1}`).code("topic"))
	c.quiet()
}

func TestTopicsInCode(t *testing.T) {
	app := newApp(t, topics.Config{Topics: []topics.Topic{
		{Pattern: "news", SubscribeRule: rule("")},
		{Pattern: "room/{x}", SubscribeRule: rule("@topic.x = 'open'")},
		{Pattern: "broken", SubscribeRule: rule("@collection.nope.id ?= 'x'")},
		{Pattern: "bound/{id}", Collection: "rooms", SubscribeRule: rule("@view")},
	}})
	s := serve(t, app)
	c := s.connect()

	c.allow("", "news")
	c.deny("", "broken", "topic_rule_error")
	c.deny("", "bound/x", "topic_rule_error") // the collection does not exist yet

	// code wins over a record with the same pattern
	define(t, app, map[string]any{"pattern": "room/{id}", "subscribeRule": ""})
	c.allow("", "room/open")
	c.deny("", "room/shut", "topic_denied")

	rooms := newCollection(t, app, "rooms", &core.BoolField{Name: "open"})
	rooms.ViewRule = rule("open = true")
	require.NoError(t, app.Save(rooms))
	room := newRecord(t, app, "rooms", map[string]any{"open": true})
	c.allow("", "bound/"+room.Id)
	c.deny("", "bound/nope", "topic_denied")
}
