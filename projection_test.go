package topics

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"testing"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/subscriptions"
	"github.com/stretchr/testify/require"
)

func TestOptionsReadByARule(t *testing.T) {
	q := func(names ...string) optionNames { return optionNames{query: names} }
	for text, want := range map[string]optionNames{
		"":                                         {},
		"@request.auth.id != ''":                   {},
		"@topic = '@request.query.a'":              {}, // a text
		"// @request.query.a\n@topic = 'x'":        {},
		"@request.context = 'realtime'":            {},
		"@request.method = 'GET' && (@topic != 1)": {},
		"@request.body.query = 'x'":                {},
		"@request.query.a = 1":                     q("a"),
		"1 = @request.query.a":                     q("a"),
		"@request.query.a:isset = true":            q("a", "a:isset"),
		"@request.query.a:lower = 'x'":             q("a", "a:lower"),
		"@request.query.a:b:lower = 'x'":           q("a", "a:b:lower"),
		"@request.query.a.b = 'x'":                 q("a"),
		"@request.query.b=1||(@request.query.a=1&&(@request.query.a=2||@request.query.c?~3))": q("a", "b", "c"),
		"@request.headers.x_token = @request.query.q":                                         {query: []string{"q"}, headers: []string{"x_token"}},
		"strftime('%H') > '1'":                                              {},
		"strftime('%H', @request.query.at) > '1'":                           q("at"),
		"geoDistance(@request.query.lon, 1, @request.headers.lat, 3) < 200": {query: []string{"lon"}, headers: []string{"lat"}},
		"ownFunction(1) = 1":                                                {all: true},
		"@request.query = 'x'":                                              {all: true},
		"@request.headers = 'x'":                                            {all: true},
		"@request.query.a = ":                                               {all: true},
	} {
		got := optionsReadBy(text)
		require.Equal(t, want.all, got.all, text)
		require.ElementsMatch(t, want.query, got.query, text)
		require.ElementsMatch(t, want.headers, got.headers, text)
		require.True(t, slices.IsSorted(got.query), text)
	}
}

func TestCovers(t *testing.T) {
	all, none := optionNames{all: true}, optionNames{}
	a, ab := optionNames{query: []string{"a"}}, optionNames{query: []string{"a", "b"}}
	header := optionNames{headers: []string{"a"}}
	for _, n := range []optionNames{all, none, a, ab, header} {
		require.True(t, all.covers(n))
		require.True(t, n.covers(n))
		require.True(t, n.covers(none))
	}
	require.True(t, ab.covers(a))
	for _, c := range [][2]optionNames{{a, ab}, {a, header}, {header, a}, {none, a}, {none, all}, {ab, all}} {
		require.False(t, c[0].covers(c[1]), "%v", c)
	}
}

// What a rule reads of the options decides, and only that: with all options and
// with those of the projection the answer is the same.
func TestAProjectionDecidesLikeAllOptions(t *testing.T) {
	app, p := newReadsApp(t)
	random := newRand(t)
	room := core.NewRecord(mustFind(t, app, "rooms"))
	room.Set("kind", "a")
	require.NoError(t, app.Save(room))
	rooms := mustFind(t, app, "rooms")
	rooms.ViewRule = new(string)
	*rooms.ViewRule = "@request.query.view = kind"
	require.NoError(t, app.Save(rooms))

	rules := []shapedRule{
		{"@request.query.a = 'a'", false},
		{"@request.query.a != @request.query.b", false},
		{"@request.query.a:isset = true && @request.query.b:isset = false", false},
		{"@request.query.a:lower = @request.headers.b", false},
		{"@request.query.a.b:isset = false || @request.query.b = 'a'", false},
		{"@request.headers.a ~ 'a' || (@request.headers.b = '' && @request.query.b = '')", false},
		{"strftime('%Y', @request.query.a) = '2020'", false},
		{"geoDistance(@request.query.a, 1, 2, 1) < 200 || @request.query.b = 'b'", false},
		{"kind = @request.query.a || kind:lower = @request.headers.a", true},
		{"@view", true},
		{"@collection.rooms.kind ?= @request.query.a && @topic.id != ''", false},
	}
	saveRules(t, app, rules)

	values := []string{"", "a", "A", "b", "1", "2020-01-01", "%"}
	some := func() map[string]string {
		options := map[string]string{}
		for _, name := range []string{"a", "b", "c", "view", "a:isset"} {
			if random.IntN(2) == 0 {
				options[name] = values[random.IntN(len(values))]
			}
		}
		return options
	}
	allowed := map[int]int{}
	for range 100 * *rounds {
		for i := range rules {
			topic := fmt.Sprintf("r%d/%s", i, room.Id)
			full := subscriptions.SubscriptionOptions{Query: some(), Headers: some()}
			known := p.projectOptions(app, actionSubscribe, topic, full)
			require.False(t, known.names.all)

			want := p.decide(app, actionSubscribe, topic, askerOf(realtimeInfo(full, nil)))
			got := p.decide(app, actionSubscribe, topic, askerOf(realtimeInfo(known.options, nil)))
			require.Equal(t, want == nil, got == nil, "%s with %v, of which %v", rules[i].text, full, known.options)
			if want == nil {
				allowed[i]++
			}
		}
	}
	require.Len(t, allowed, len(rules), "each rule lets somebody in")
}

// Equal projections share a decision, and others do not.
func TestProjectionsOfDifferentOptionsDiffer(t *testing.T) {
	names := []optionNames{
		{},
		{query: []string{"a"}},
		{headers: []string{"a"}},
		{query: []string{"a", "b"}},
		{query: []string{`a"q"b`}},
		{query: []string{"a="}},
		{query: []string{`a"="b`}},
	}
	values := []map[string]string{{}, {"a": ""}, {"a": "b"}, {"a": "b", "b": ""}, {"a": `"q"b`}, {"a=": "b"}, {"b": "b"}}
	seen := map[string]string{}
	for _, n := range names {
		for _, query := range values {
			for _, headers := range values {
				known := project(n, "room/1?x", subscriptions.SubscriptionOptions{Query: query, Headers: headers})
				full := fmt.Sprintf("%q %q %q %q", n.query, n.headers, known.options.Query, known.options.Headers)
				if other, ok := seen[known.text]; ok {
					require.Equal(t, other, full)
				}
				seen[known.text] = full
				for name := range maps.Keys(known.options.Query) {
					require.Contains(t, n.query, name)
				}
			}
		}
	}
	require.NotContains(t, seen, everyOption("room/1?x", noOptions()).text)
}

// Options that no rule reads make no decisions of their own.
func TestOptionsThatNoRuleReadsShareADecision(t *testing.T) {
	app, p := newReadsApp(t)
	saveRules(t, app, []shapedRule{
		{"", false},
		{"@topic != ''", false},
		{"@request.query.code != 'x'", false},
	})

	for pattern, want := range map[string]int{"r0/x": 1, "r1/x": 1, "r2/x": 3, "unknown": 1} {
		found := map[*grant]bool{}
		for i := range 300 {
			k := fmt.Sprintf("%s?%d&options=%s", pattern, i, url.QueryEscape(fmt.Sprintf(`{"query":{"n":"%d","code":"c%d"},"headers":{"n":"%d"}}`, i, i%3, i)))
			found[p.grants.acquire(app, actionSubscribe, k, parseKeys([]string{k})[k], credentials{})] = true
		}
		require.Len(t, found, want, pattern)
		for g := range found {
			require.NotContains(t, g.options.Query, "n")
		}
	}
}
