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
