package topics

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/search"
	"github.com/pocketbase/pocketbase/tools/subscriptions"
)

// aliasClash says that core's query for a rule would take two different things
// for the same table. Core makes the alias of each table that it joins from the
// names on the way to it, joined by "_": a.b and a_b, or @collection.order.item
// and a collection order_item, become one, and the later join replaces the
// earlier. The rule would then be evaluated on rows that it does not name, and
// a write to those that it does name could be missed.
type aliasClash struct {
	first, second string // identifiers of the rule, the same if one is enough
	alias         string
}

func (c *aliasClash) Error() string {
	if c.first == c.second {
		return fmt.Sprintf("PocketBase would take two tables of %s for the same one (both become %s)", c.second, c.alias)
	}
	return fmt.Sprintf("PocketBase would take a table of %s and another one of %s for the same (both become %s)", c.first, c.second, c.alias)
}

// checkAliases returns an [aliasClash] if the rule has one for accounts of that
// collection (nil for guests), or why the rule cannot be evaluated at all.
//
// Core's own resolver says what it would join. Each identifier gets a resolver
// of its own, in which no join replaces that of another identifier.
func checkAliases(app core.App, text string, base, auth *core.Collection, names []string) error {
	// what the rule's values are does not matter
	info := realtimeInfo(subscriptions.SubscriptionOptions{}, nil)
	if auth != nil {
		info.Auth = core.NewRecord(auth)
		info.Auth.Id = "x"
	}
	values := make(params, len(names))
	for i, name := range names {
		values[i] = param{name: name, value: "x"}
	}

	c := &aliasCheck{
		resolver: func() *topicResolver { return newTopicResolver(app, base, info, "x", values) },
		seen:     map[string]aliased{foldAlias(base.Name): {alias: base.Name, by: ownTable}},
		unbound:  base == unboundBase,
	}
	if _, err := search.FilterData(text).BuildExpr(c); err != nil && c.err == nil {
		return err
	}
	return c.err
}

// aliasCheck is a resolver that looks at the joins of each identifier.
type aliasCheck struct {
	resolver func() *topicResolver
	seen     map[string]aliased // by folded alias
	unbound  bool
	err      error
}

// ownTable is what a rule is evaluated on, in an error.
const ownTable = "the topic's own record"

// aliased is what an alias stands for.
type aliased struct {
	alias string
	table string // and how its rows are joined
	by    string // identifier
}

var _ search.FieldResolver = (*aliasCheck)(nil)

// UpdateQuery implements [search.FieldResolver].
func (c *aliasCheck) UpdateQuery(*dbx.SelectQuery) error { return nil }

// Resolve implements [search.FieldResolver].
func (c *aliasCheck) Resolve(name string) (*search.ResolverResult, error) {
	r := c.resolver()
	result, err := r.Resolve(name)
	if err != nil || c.err != nil {
		return result, err
	}

	q := sqlText.Select()
	if err := r.UpdateQuery(q); err != nil {
		return nil, err
	}
	for i, join := range q.Info().Join {
		if c.look(name, join, i == 0); c.err != nil {
			return nil, c.err
		}
	}
	if alias := repeatedAlias(result.MultiMatchSubQuery); alias != "" {
		c.err = &aliasClash{first: name, second: name, alias: alias}
		return nil, c.err
	}
	return result, nil
}

// look compares a join of an identifier with those that were there before.
func (c *aliasCheck) look(name string, join dbx.JoinInfo, first bool) {
	// a function in the table's place may have spaces, an alias has none
	at := max(strings.LastIndexByte(join.Table, ' '), 0)
	table, alias := join.Table[:at], strings.TrimSpace(join.Table[at:])

	if c.unbound && strings.EqualFold(table, unboundBase.Name) {
		c.err = &aliasClash{first: ownTable, second: name, alias: alias} // hidden by the query's own
		return
	}
	if join.On != nil {
		values := dbx.Params{}
		table += "\x00" + join.On.Build(sqlText, values) + fmt.Sprint(values)
	}
	if first {
		table += "\x00" + otherRow(name)
	}

	switch other, known := c.seen[foldAlias(alias)]; {
	case !known:
		c.seen[foldAlias(alias)] = aliased{alias: alias, table: table, by: name}
	case other.alias != alias || other.table != table:
		c.err = &aliasClash{first: other.by, second: name, alias: alias}
	}
}

// sqlText makes the text of expressions. It has no database.
var sqlText = dbx.NewFromDB(nil, "sqlite3")

// otherRow is the name that @collection.rooms:name gives to another row of the
// collection. As such rows are joined alike, a collection alias_name cannot be
// told from it by its join.
func otherRow(identifier string) string {
	path := strings.SplitN(identifier, ".", 3)
	if path[0] != "@collection" || len(path) < 2 {
		return ""
	}
	_, name, _ := strings.Cut(path[1], ":")
	return name
}

// repeatedAlias returns an alias that core's subquery for all rows of a path has
// twice, or that hides the table which it is about.
func repeatedAlias(q *search.MultiMatchSubquery) string {
	if q == nil {
		return ""
	}
	seen := []string{foldAlias(q.TargetTableAlias), foldAlias(q.FromTableAlias)}
	for _, join := range q.Joins {
		alias := foldAlias(join.TableAlias)
		if slices.Contains(seen, alias) {
			return join.TableAlias
		}
		seen = append(seen, alias)
	}
	return ""
}

// foldAlias is equal for aliases that SQLite takes for the same. They have
// letters of ASCII only.
func foldAlias(alias string) string { return strings.ToLower(alias) }
