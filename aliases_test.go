package topics

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/search"
	"github.com/pocketbase/pocketbase/tools/subscriptions"
	"github.com/stretchr/testify/require"
)

// aliasModel names the tables of a rule's query by the ways that lead to them,
// and knows the alias that core gives to each.
type aliasModel struct {
	base    string
	aliases map[string]string   // by way
	tables  map[string]string   // collection names by way, of those that are collections
	within  [][]string          // aliases of each subquery for all rows
	names   map[string][]string // ways by folded alias
}

func newAliasModel(base string) *aliasModel {
	m := &aliasModel{base: base, aliases: map[string]string{}, tables: map[string]string{}, names: map[string][]string{}}
	m.add("base", base, "")
	return m
}

func (m *aliasModel) add(way, alias, table string) {
	if _, known := m.aliases[way]; known {
		return
	}
	m.aliases[way] = alias
	if table != "" {
		m.tables[way] = table
	}
	m.names[strings.ToLower(alias)] = append(m.names[strings.ToLower(alias)], way)
}

// ambiguous reports whether two ways have one alias.
func (m *aliasModel) ambiguous() bool {
	for _, ways := range m.names {
		if len(ways) > 1 {
			return true
		}
	}
	for _, aliases := range m.within {
		seen := map[string]bool{strings.ToLower(m.base): true}
		for _, alias := range aliases {
			if seen[strings.ToLower(alias)] {
				return true
			}
			seen[strings.ToLower(alias)] = true
		}
	}
	return false
}

// schema is a set of collections whose names and fields are likely to clash.
type schema struct {
	random *rand.Rand
	all    []*core.Collection
}

var clashingNames = []string{"a", "b", "a_b", "b_a", "a_b_a", "alias_x", "alias_a", "je", "a_je", "__collection_a", "__auth_u", "__mm___collection_a", "A_via", "b_via_a"}

func newSchema(random *rand.Rand) *schema {
	s := &schema{random: random}
	for i, name := range s.pick(5) {
		c := core.NewBaseCollection(name, fmt.Sprintf("id%d", i))
		if i == 0 {
			c = core.NewAuthCollection("u", "idu")
		}
		s.all = append(s.all, c)
	}
	for _, c := range s.all {
		c.Fields.Add(&core.TextField{Name: "t"})
		for _, name := range s.pick(5) {
			if strings.Contains(name, "_via_") {
				continue // core refuses it as the name of a field
			}
			c.Fields.Add(&core.RelationField{Name: name, CollectionId: s.all[random.IntN(len(s.all))].Id, MaxSelect: 1 + random.IntN(2)})
		}
	}
	return s
}

func (s *schema) pick(n int) []string {
	names := slices.Clone(clashingNames)
	s.random.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	return names[:n]
}

func (s *schema) byID(id string) *core.Collection {
	return s.all[slices.IndexFunc(s.all, func(c *core.Collection) bool { return c.Id == id })]
}

func (s *schema) relations(c *core.Collection) []*core.RelationField {
	var found []*core.RelationField
	for _, f := range c.Fields {
		if r, ok := f.(*core.RelationField); ok {
			found = append(found, r)
		}
	}
	return found
}

// identifier makes one of a rule, and adds what core joins for it to the model.
func (s *schema) identifier(m *aliasModel, base *core.Collection) string {
	var (
		at        = base
		name, way string
		alias     = base.Name
		inner     = "__mm_" + base.Name
		within    = []string{inner}
		many      = false
	)
	way = "base"
	switch s.random.IntN(4) {
	case 0:
		at = s.all[s.random.IntN(len(s.all))]
		name, way, alias = "@collection."+[]string{at.Name, at.Id}[s.random.IntN(2)], "collection "+at.Id, "__collection_"+at.Name
		if s.random.IntN(2) == 0 {
			other := []string{"a", "A", "x", "b_a"}[s.random.IntN(4)]
			name, way, alias = name+":"+other, way+":"+other, "__collection_alias_"+other
		}
		many = true
	case 1:
		at = s.all[0]
		name, way, alias = "@request.auth", "auth", "__auth_"+at.Name
	}
	if way != "base" {
		if way != "auth" {
			m.add(way, alias, at.Name)
		}
		inner = "__mm_" + alias
		within = append(within, inner)
		name += "."
	}

	end := []string{"t", "t", "id", "each"}[s.random.IntN(4)]
	depth := s.random.IntN(4)
	for i := range depth {
		relations := s.relations(at)
		if s.random.IntN(3) == 0 {
			// back from a collection that points here
			var back []string
			for _, c := range s.all {
				for _, r := range s.relations(c) {
					if prop := c.Name + "_via_" + r.Name; r.CollectionId == at.Id && at.Fields.GetByName(prop) == nil && viaAsCoreDoes(prop) == c.Name {
						back = append(back, c.Id+"."+r.Name)
					}
				}
			}
			if len(back) > 0 {
				id, field, _ := strings.Cut(back[s.random.IntN(len(back))], ".")
				c := s.byID(id)
				prop := c.Name + "_via_" + field
				name += prop + "."
				way, alias, inner = way+"/"+prop, alias+"_"+prop, inner+"_"+prop
				m.add(way, alias, c.Name)
				within = append(within, inner)
				many = true
				at = c
				continue
			}
		}
		if len(relations) == 0 {
			break
		}
		r := relations[s.random.IntN(len(relations))]
		name += r.Name + "."
		if i == depth-1 && end == "id" && !r.IsMultiple() {
			break // core compares the column itself
		}
		way, alias = way+"/"+r.Name, alias+"_"+r.Name
		if r.IsMultiple() {
			m.add("each "+way, "__je_"+alias, "")
			within = append(within, inner+"_"+r.Name+"_je")
			many = true
		}
		inner += "_" + r.Name
		within = append(within, inner)
		at = s.byID(r.CollectionId)
		m.add(way, alias, at.Name)
	}

	relations := s.relations(at)
	if end == "each" && len(relations) > 0 && !strings.HasSuffix(name, "@request.auth.") {
		r := relations[s.random.IntN(len(relations))]
		m.add("each "+way+"/"+r.Name, "__je_"+alias+"_"+r.Name, "")
		many = many || r.IsMultiple()
		if many {
			within = append(within, "__je_"+inner+"_"+r.Name)
		}
		end = r.Name + ":each"
	} else if end == "each" {
		end = "t"
	}
	if many {
		m.within = append(m.within, within)
	}
	if name += end; strings.HasPrefix(name, "@request.auth.") && name != "@request.auth.id" {
		m.add("auth", "__auth_u", "u")
	}
	return name
}

// viaAsCoreDoes is the collection that core reads from a back relation.
func viaAsCoreDoes(prop string) string {
	if found := backRelation.FindStringSubmatch(prop); found != nil {
		return found[1]
	}
	return ""
}

// Over random schemas: a rule is ambiguous exactly if two tables of core's query
// have one alias, and the analysis of what other rules read knows all tables.
func TestAmbiguousRules(t *testing.T) {
	app, _ := newReadsApp(t)
	cached := app.Store().Get(core.StoreKeyCachedCollections)
	t.Cleanup(func() { app.Store().Set(core.StoreKeyCachedCollections, cached) })
	random := newRand(t)

	found, sound := 0, 0
	for range *rounds * 300 {
		s := newSchema(random)
		app.Store().Set(core.StoreKeyCachedCollections, s.all)
		for range 20 {
			base := s.all[random.IntN(len(s.all))]
			m := newAliasModel(base.Name)
			var conditions []string
			for range 1 + random.IntN(4) {
				conditions = append(conditions, s.identifier(m, base)+[]string{" = ", " ?= "}[random.IntN(2)]+"'x'")
			}
			text := strings.Join(conditions, " && ")

			err := checkAliases(app, text, base, s.all[0], nil)
			var clash *aliasClash
			require.True(t, err == nil || errors.As(err, &clash), "%s: %v", text, err)
			require.Equal(t, m.ambiguous(), err != nil, "%s on %s: %v\n%v %v", text, base.Name, err, m.aliases, m.within)

			// the model has core's aliases
			require.ElementsMatch(t, m.folded(), coreAliases(t, app, text, base, s.all[0]), text)

			if err != nil {
				found++
				continue
			}
			sound++
			r := readsOf(app, readSchema, text, base, "x", nil, "t", s.all[0], "x")
			var read []string
			for _, table := range r.tables {
				read = append(read, s.byID(table.collection).Name)
			}
			require.Subset(t, read, slices.Collect(maps.Values(m.tables)), text)
		}
	}
	require.Positive(t, found)
	require.Positive(t, sound)
	t.Logf("%d ambiguous rules, %d others", found, sound)
}

// folded are the different aliases, other than the base's.
func (m *aliasModel) folded() []string {
	var names []string
	for way, alias := range m.aliases {
		if way != "base" && !slices.Contains(names, alias) {
			names = append(names, alias)
		}
	}
	return names
}

// coreAliases are those in the query that core makes of the whole rule.
func coreAliases(t testing.TB, app core.App, text string, base, auth *core.Collection) []string {
	t.Helper()

	info := realtimeInfo(subscriptions.SubscriptionOptions{}, core.NewRecord(auth))
	info.Auth.Id = "x"
	resolver := newTopicResolver(app, base, info, "t", nil)
	_, err := search.FilterData(text).BuildExpr(resolver)
	require.NoError(t, err, text)
	q := sqlText.Select()
	require.NoError(t, resolver.UpdateQuery(q))

	var names []string
	for _, join := range q.Info().Join {
		names = append(names, join.Table[strings.LastIndexByte(join.Table, ' ')+1:])
	}
	return names
}

// BenchmarkCheckAliases is what a rule costs the first time.
func BenchmarkCheckAliases(b *testing.B) {
	app, _ := newReadsApp(b)
	users := mustFind(b, app, "users")
	for b.Loop() {
		if err := checkAliases(app, tiedRule, unboundBase, users, []string{"room"}); err != nil {
			b.Fatal(err)
		}
	}
}

const tiedRule = "@collection.memberships.room ?= @topic.room && @collection.memberships.user ?= @request.auth.id && @request.auth.role = 'x'"
