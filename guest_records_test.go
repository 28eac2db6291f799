package topics_test

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/store"
	"github.com/pocketbase/pocketbase/tools/types"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

type hasRecord struct {
	Record *core.Record `json:"record"`
	Hidden *core.Record `json:"-"`
	other  *core.Record
}

type embedded struct {
	Of *core.Record
}

type hasEmbedded struct {
	embedded
	Rest any `json:"rest,omitempty"`
}

type hasEmbeddedPointer struct {
	*embedded
}

type article struct {
	core.BaseRecordProxy
}

type sharedArticle struct {
	*article
}

// own is a type with its own JSON.
type own struct{ v any }

func (o own) MarshalJSON() ([]byte, error) { return json.Marshal(o.v) }

// asKey is a text with a record in it.
type asKey struct{ record *core.Record }

func (k asKey) MarshalText() ([]byte, error) { return []byte(k.record.Email()), nil }

type record = *core.Record

// around are the ways to have a record in the data, each with the path from the
// data to the record.
var around = map[string]struct {
	data func(record) any
	path []any
}{
	"itself":           {func(r record) any { return r }, nil},
	"value":            {func(r record) any { return *r }, nil},
	"pointer":          {func(r record) any { return &r }, nil},
	"map":              {func(r record) any { return map[string]any{"a": 1, "r": r} }, []any{"r"}},
	"typed map":        {func(r record) any { return map[string]record{"r": r} }, []any{"r"}},
	"map of numbers":   {func(r record) any { return map[int]any{7: r} }, []any{"7"}},
	"map of values":    {func(r record) any { return map[string]core.Record{"r": *r} }, []any{"r"}},
	"list":             {func(r record) any { return []any{1, r} }, []any{1}},
	"typed list":       {func(r record) any { return []record{nil, r} }, []any{1}},
	"list of values":   {func(r record) any { return []core.Record{*r} }, []any{0}},
	"array":            {func(r record) any { return [2]record{1: r} }, []any{1}},
	"struct":           {func(r record) any { return hasRecord{Record: r, Hidden: r, other: r} }, []any{"record"}},
	"struct pointer":   {func(r record) any { return &hasRecord{Record: r} }, []any{"record"}},
	"embedded":         {func(r record) any { return hasEmbedded{embedded: embedded{r}} }, []any{"Of"}},
	"any in a struct":  {func(r record) any { return &hasEmbedded{Rest: []any{r}} }, []any{"rest", 0}},
	"pointer to any":   {func(r record) any { var v any = map[string]any{"r": &r}; return &v }, []any{"r"}},
	"deep":             {func(r record) any { return map[string]any{"a": []any{map[string]any{"b": []hasRecord{{Record: r}}}}} }, []any{"a", 0, "b", 0, "record"}},
	"proxy":            {func(r record) any { return []any{proxyOf(r)} }, []any{0}},
	"proxy value":      {func(r record) any { return map[string]any{"p": *proxyOf(r)} }, []any{"p"}},
	"RecordProxy":      {func(r record) any { return []core.RecordProxy{proxyOf(r)} }, []any{0}},
	"request info":     {func(r record) any { return core.RequestInfo{Auth: r} }, []any{"auth"}},
	"expand":           {func(r record) any { return holder(r, r) }, []any{"expand", "of"}},
	"expanded list":    {func(r record) any { return holder(r, []record{r}) }, []any{"expand", "of", 0}},
	"expand of expand": {func(r record) any { return []any{holder(r, holder(r, []any{r}))} }, []any{0, "expand", "of", "expand", "of", 0}},
	"custom data":      {func(r record) any { return custom(r, map[string]any{"x": r}) }, []any{"custom", "x"}},
}

func proxyOf(r record) *article {
	p := new(article)
	p.SetProxyRecord(r)
	return p
}

func holder(r record, of any) record {
	h := core.NewRecord(r.Collection())
	h.SetExpand(map[string]any{"of": of})
	return h
}

func custom(r record, v any) record {
	h := core.NewRecord(r.Collection())
	h.SetRaw("custom", v)
	return h.WithCustomData(true)
}

// withSecrets adds a hidden field to users.
func withSecrets(t *testing.T, app core.App) {
	t.Helper()
	users, err := app.FindCollectionByNameOrId("users")
	require.NoError(t, err)
	users.Fields.Add(&core.TextField{Name: "secret", Hidden: true})
	users.UpdateRule = rule("@request.auth.id = id")
	users.ViewRule = rule("")
	require.NoError(t, app.Save(users))
}

// A record of an update request shows what its sender may see. Subscribers get
// what a guest may.
func TestNotifyRecordOfARequest(t *testing.T) {
	app := newApp(t, topics.Config{})
	withSecrets(t, app)
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "a", "subscribeRule": ""})
	ann, annToken := newUser(t, app, "ann")
	ann.Set("secret", "hushhush")
	ann.SetEmailVisibility(false)
	require.NoError(t, app.Save(ann))
	super := newSuperuser(t, app)

	c := s.connect()
	c.mustSubscribe("", "a")
	var send func(record) error
	app.OnRecordUpdateRequest("users").BindFunc(func(e *core.RecordRequestEvent) error {
		if err := e.Next(); err != nil {
			return err
		}
		return send(e.Record)
	})
	enriched := 0
	app.OnRecordEnrich().BindFunc(func(e *core.RecordEnrichEvent) error {
		enriched++
		return e.Next()
	})

	for name, tc := range around {
		for sender, token := range map[string]string{"owner": annToken, "superuser": super} {
			send = func(r record) error {
				before, calls := r.PublicExport(), enriched
				require.Contains(t, before, "email", "the sender sees it")
				data := tc.data(r)
				if err := topics.Notify(app, "a", data); err != nil {
					return err
				}
				require.Equal(t, before, r.PublicExport(), "the caller's record stays")
				require.Equal(t, calls, enriched)
				sent, err := json.Marshal(data)
				require.NoError(t, err)
				require.Contains(t, string(sent), ann.Email(), "the caller's data stays")
				return nil
			}
			r := s.request(http.MethodPatch, "/api/collections/users/records/"+ann.Id, token, `{"name":"Ann <3"}`)
			require.Equal(t, http.StatusOK, r.status, "%s %s %s", name, sender, r.body)
			require.Contains(t, r.body, ann.Email())

			e := c.next()
			require.NotContains(t, e.data, ann.Email(), "%s %s", name, sender)
			require.NotContains(t, e.data, "hushhush", "%s %s", name, sender)
			require.Contains(t, e.data, "Ann <3", "%s %s", name, sender)

			var v any
			require.NoError(t, json.Unmarshal([]byte(e.data), &v))
			for _, step := range tc.path {
				switch step := step.(type) {
				case string:
					v = v.(map[string]any)[step]
				case int:
					v = v.([]any)[step]
				}
			}
			fresh, err := app.FindRecordById("users", ann.Id)
			require.NoError(t, err)
			want, err := json.Marshal(fresh)
			require.NoError(t, err)
			got, err := json.Marshal(v)
			require.NoError(t, err)
			require.JSONEq(t, string(want), string(got), "%s %s", name, sender)
		}
	}
}

// What the app has chosen for all is kept.
func TestNotifyRecordKeepsTheAppsChoice(t *testing.T) {
	app := newApp(t, topics.Config{})
	withSecrets(t, app)
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "a", "subscribeRule": ""})
	c := s.connect()
	c.mustSubscribe("", "a")

	ann, _ := newUser(t, app, "ann")
	ann.SetEmailVisibility(true)
	ann.Set("name", "Ann")
	ann.Set("secret", "hushhush")
	ann.Set("likes", "tea")

	get := func(data any) map[string]any {
		t.Helper()
		require.NoError(t, topics.Notify(app, "a", data))
		var v map[string]any
		require.NoError(t, json.Unmarshal([]byte(c.next().data), &v))
		return v
	}

	v := get(ann)
	require.Equal(t, ann.Email(), v["email"])
	require.Equal(t, "Ann", v["name"])
	require.Equal(t, ann.Id, v["id"])
	require.Equal(t, "users", v["collectionName"])
	require.NotContains(t, v, "likes")
	require.NotContains(t, v, "expand")

	v = get(ann.WithCustomData(true).Hide("name").Unhide("secret"))
	require.Equal(t, "tea", v["likes"])
	require.NotContains(t, v, "name")
	require.NotContains(t, v, "secret")

	// another view is the app's explicit choice
	v = get(ann.PublicExport())
	require.Equal(t, "hushhush", v["secret"])
}

func TestNotifyRefusesRecordsOutOfReach(t *testing.T) {
	app := newApp(t, topics.Config{})
	user := newAuth(t, app, "users", "ann")
	cycle := core.NewRecord(user.Collection())
	cycle.SetExpand(map[string]any{"a": []record{holder(user, cycle)}})
	loop := map[string]any{}
	loop["x"] = []any{loop}
	shared := &article{}
	shared.SetProxyRecord(user)

	for name, tc := range map[string]struct {
		data  any
		where string
	}{
		"own JSON":            {map[string]any{"x": []any{1, own{user}}}, `the data["x"][1] has a record`},
		"pointer to own JSON": {map[string]any{"x": &own{[]record{user}}}, `the data["x"] has a record`},
		"JSON map":            {struct{ M types.JSONMap[any] }{types.JSONMap[any]{"a": user}}, `the data.M has a record`},
		"promoted JSON":       {struct{ *core.Record }{user}, "the data has a record"},
		"unexported":          {[]any{hasEmbeddedPointer{&embedded{user}}}, "the data[0].embedded has a record"},
		"key":                 {map[asKey]int{{user}: 1}, "the data (a key) has a record"},
		"shared proxy":        {sharedArticle{shared}, "the data is a proxy"},
		"cycle of records":    {[]any{cycle}, `the data[0].expand["a"][0].expand["of"] is inside of itself`},
		"cycle of maps":       {loop, "is inside of itself"},
		"own JSON in expand":  {holder(user, own{user}), `the data.expand["of"] has a record`},
		"empty":               {[]any{new(core.Record)}, "the data[0] is a record without a collection"},
	} {
		err := topics.Notify(app, "a", tc.data)
		require.ErrorIs(t, err, topics.ErrInvalidPayload, name)
		require.ErrorContains(t, err, tc.where, name)
	}
	require.Equal(t, user, shared.ProxyRecord())
}

// Types with their own JSON are sent as before where there is no record.
func TestNotifyWithoutRecords(t *testing.T) {
	app := newApp(t, topics.Config{})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "a", "subscribeRule": ""})
	c := s.connect()
	c.mustSubscribe("", "a")
	collection, err := app.FindCollectionByNameOrId("_topics")
	require.NoError(t, err)
	now := types.NowDateTime()

	for name, data := range map[string]any{
		"nil":           nil,
		"nil record":    (*core.Record)(nil),
		"nil things":    map[string]any{"a": []record(nil), "b": map[string]record(nil), "c": (*hasRecord)(nil)},
		"own JSON":      []any{own{map[string]any{"x": 1}}, &own{}},
		"JSON map":      types.JSONMap[any]{"a": []any{1}},
		"store":         store.New(map[string]any{"a": 1}),
		"times":         []any{time.Unix(0, 0).UTC(), now, &now},
		"collection":    collection,
		"member":        topics.Member{Record: map[string]any{"a": 1}},
		"empty structs": hasRecord{},
	} {
		want, err := json.Marshal(data)
		require.NoError(t, err, name)
		require.NoError(t, topics.Notify(app, "a", data), name)
		require.JSONEq(t, string(want), c.next().data, name)
	}
}

func TestNotifyWithoutRecordsCostsNothing(t *testing.T) {
	data := map[string]any{
		"text": "hello", "count": 1, "ok": true, "list": []any{"a", 1.5},
		"names": []string{"a"}, "time": time.Now(), "nested": map[string]any{"x": nil},
	}
	same, err := topics.WithGuestRecords(data)
	require.NoError(t, err)
	require.Equal(t, any(data), same)
	require.Zero(t, testing.AllocsPerRun(100, func() { _, _ = topics.WithGuestRecords(data) }))
}

// What making a message's JSON costs: what json.Marshal does, with and without
// a record.
func BenchmarkData(b *testing.B) {
	app := newApp(b, topics.Config{})
	user := newAuth(b, app, "users", "ann")
	small := map[string]any{"text": "hello", "count": 1, "ok": true}

	b.Run("Marshal", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _ = json.Marshal(small)
		}
	})
	for name, data := range map[string]any{"small": small, "record": map[string]any{"record": user}} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _ = topics.LineOf(data)
			}
		})
	}
}
