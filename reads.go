package topics

import (
	"regexp"
	"slices"
	"strings"

	"github.com/ganigeorgiev/fexpr"
	"github.com/pocketbase/pocketbase/core"
)

// reads is what a decision depends on besides the topic, the auth record and
// the options of the subscription: which rows, and whether the clock.
type reads struct {
	tables []tableRead

	// clock: the rule asks for the time, so the decision ends by itself
	clock bool

	// everything: the analysis cannot tell, so any write may change the decision
	everything bool
}

// tableRead is rows of one collection: those whose fields have the values, or
// all rows where there are no matches.
type tableRead struct {
	collection string // id, or the tableKey of another table
	matches    []match
}

// match ties a field of a row to a value that is fixed for a decision.
type match struct {
	field string
	value string
}

// readsOf analyses a rule as core's resolver would evaluate it. What it does
// not understand it takes for a read of everything: never for none.
func readsOf(app core.App, schemaOf func(core.App) (*databaseSchema, error), text string, base *core.Collection, recordID string, values params, topic string, authCollection *core.Collection, authID string) reads {
	a := &analysis{
		app:            app,
		schemaOf:       schemaOf,
		base:           base,
		authCollection: authCollection,
		authID:         authID,
		topic:          topic,
		params:         values,
		aliases:        map[string]*alias{},
	}

	if base != unboundBase {
		// the query asks for this row, whatever the rule says
		a.alias("", base).fixed = []match{{core.FieldNameId, recordID}}
	}

	groups, err := fexpr.Parse(text)
	if err != nil {
		// the rule denies until it is changed, and that decides everything anew
		return a.result(nil)
	}

	return a.result(a.tree(groups))
}

// analysis walks a rule. Each alias is a table of the query that core would
// build: the base record, the auth record, each @collection and each relation
// that is followed from one of them.
type analysis struct {
	app            core.App
	schemaOf       func(core.App) (*databaseSchema, error)
	base           *core.Collection
	authCollection *core.Collection
	authID         string
	topic          string
	params         params

	aliases map[string]*alias
	clock   bool
	unknown bool
}

type alias struct {
	collection *core.Collection

	// fixed rows: the query itself narrows the table to them
	fixed []match

	// leaves that mention the alias or a table that is joined to it
	leaves []*leaf

	// allRows: some condition asks about every row (a plain operator on a
	// table with many rows), so that no row is without influence
	allRows bool
}

// leaf is one condition of the rule.
type leaf struct {
	// equal are the columns that the condition compares with a fixed value so
	// that a row with another value cannot fulfil it
	equal []equality
}

type equality struct {
	alias *alias
	match match
}

// node is the rule as a tree of conditions.
type node struct {
	leaf     *leaf
	or       bool // else and
	children []*node
}

func (a *analysis) alias(key string, c *core.Collection) *alias {
	found := a.aliases[key]
	if found == nil {
		found = &alias{collection: c}
		a.aliases[key] = found
	}
	return found
}

// tree splits a flat list of conditions at its ORs: AND binds tighter, because
// core hands the list to SQL as it is.
func (a *analysis) tree(groups []fexpr.ExprGroup) *node {
	or := &node{or: true}
	and := &node{}
	for i, g := range groups {
		if i > 0 && g.Join == fexpr.JoinOr {
			or.children = append(or.children, and)
			and = &node{}
		}
		switch item := g.Item.(type) {
		case fexpr.Expr:
			and.children = append(and.children, &node{leaf: a.condition(item)})
		case fexpr.ExprGroup:
			and.children = append(and.children, a.tree([]fexpr.ExprGroup{item}))
		case []fexpr.ExprGroup:
			and.children = append(and.children, a.tree(item))
		default:
			a.unknown = true
		}
	}
	if len(or.children) == 0 {
		return and
	}
	or.children = append(or.children, and)
	return or
}

// column is the end of an operand's path.
type column struct {
	alias *alias
	field core.Field // nil: not a plain column of the table

	// many: the path can end at many rows, so that plain operators ask about
	// all of them
	many bool
	path []*alias
}

func (a *analysis) condition(e fexpr.Expr) *leaf {
	l := new(leaf)

	left, right := a.operand(e.Left), a.operand(e.Right)
	anyRow := strings.HasPrefix(string(e.Op), "?")
	equals := e.Op == fexpr.SignEq || e.Op == fexpr.SignAnyEq

	for _, side := range []struct{ column, other operand }{{left, right}, {right, left}} {
		for _, c := range side.column.columns {
			for _, al := range c.path {
				al.leaves = append(al.leaves, l)
				if c.many && !anyRow {
					al.allRows = true
				}
			}
			if equals && c.field != nil && side.other.value != "" && comparesAsText(c.field) {
				l.equal = append(l.equal, equality{c.alias, match{c.field.GetName(), side.other.value}})
			}
		}
	}

	return l
}

// comparesAsText reports whether the field's column equals a text only if its
// value is that text. (5 = '5.0' is true for a number.)
func comparesAsText(f core.Field) bool {
	switch field := f.(type) {
	case *core.TextField, *core.EmailField, *core.URLField:
		return true
	case *core.RelationField:
		return !field.IsMultiple()
	case *core.SelectField:
		return !field.IsMultiple()
	}
	return false
}

// operand is one side of a condition: columns (several within a function), or
// a value that is fixed for a decision, or neither.
type operand struct {
	columns []column
	value   string
}

func (a *analysis) operand(t fexpr.Token) operand {
	switch t.Type {
	case fexpr.TokenText:
		return operand{value: t.Literal}
	case fexpr.TokenNumber:
		return operand{}
	case fexpr.TokenFunction:
		return a.function(t)
	case fexpr.TokenIdentifier:
		return a.identifier(t.Literal)
	}
	a.unknown = true
	return operand{}
}

// function collects the columns of the arguments; their values are not those
// of a plain column any more.
func (a *analysis) function(t fexpr.Token) operand {
	switch t.Literal {
	case "geoDistance":
	case "strftime":
		a.clock = true // it can ask for the time
	default:
		a.clock, a.unknown = true, true // of the app's own
	}

	args, ok := t.Meta.([]fexpr.Token)
	if !ok {
		a.unknown = true
	}
	var o operand
	for _, arg := range args {
		for _, c := range a.operand(arg).columns {
			c.field = nil
			o.columns = append(o.columns, c)
		}
	}
	return o
}

func (a *analysis) identifier(name string) operand {
	path := strings.Split(name, ".")

	switch first := path[0]; {
	case name == topicIdentifier:
		return operand{value: a.topic}

	case first == topicIdentifier:
		value, _ := a.params.get(strings.TrimPrefix(name, topicIdentifier+"."))
		return operand{value: value}

	case first == "@request":
		return a.request(path)

	case first == "@collection":
		return a.collection(path)

	case strings.HasPrefix(first, "@"):
		a.clock = true // all other macros are dates
		return operand{}

	case a.base == unboundBase:
		return operand{} // null, true, false: anything else has no field

	default:
		return a.walk("", a.alias("", a.base), path, false)
	}
}

func (a *analysis) request(path []string) operand {
	if len(path) < 3 || path[1] != "auth" {
		return operand{} // body, query, headers, method, context
	}
	if a.authCollection == nil {
		return operand{} // NULL
	}
	if len(path) == 3 && path[2] == core.FieldNameId {
		return operand{value: a.authID}
	}

	auth := a.alias("@request.auth", a.authCollection)
	auth.fixed = []match{{core.FieldNameId, a.authID}}
	return a.walk("@request.auth", auth, path[2:], false)
}

func (a *analysis) collection(path []string) operand {
	if len(path) < 3 {
		return operand{}
	}
	name, other, _ := strings.Cut(path[1], ":")
	c, err := a.app.FindCachedCollectionByNameOrId(name)
	if err != nil {
		return operand{} // the rule cannot be evaluated
	}

	// core knows an alias by its name alone
	key := "@collection." + c.Id
	if other != "" {
		key = "@collection:" + other
	}
	if known := a.aliases[key]; known != nil && known.collection.Id != c.Id {
		a.unknown = true
	}
	return a.walk(key, a.alias(key, c), path[2:], true)
}

var backRelation = regexp.MustCompile(`^(\w+)_via_(\w+)$`)

// walk follows relations from a table to the column that the path names.
func (a *analysis) walk(key string, at *alias, path []string, many bool) operand {
	c := column{alias: at, many: many, path: []*alias{at}}

	for i, name := range path {
		name, modifier, _ := strings.Cut(name, ":")
		field := at.collection.Fields.GetByName(name)

		if i == len(path)-1 {
			if modifier == "" {
				c.field = field
			}
			c.many = c.many || modifier == "each"
			break
		}

		var (
			next  *core.Collection
			fixed []match
		)
		switch relation := field.(type) {
		case *core.RelationField:
			if !relation.IsMultiple() && i == len(path)-2 && path[i+1] == core.FieldNameId {
				// core compares the column itself
				c.field = relation
				return operand{columns: []column{c}}
			}
			c.many = c.many || relation.IsMultiple()
			next, _ = a.app.FindCachedCollectionByNameOrId(relation.CollectionId)
		case nil:
			if via := backRelation.FindStringSubmatch(name); via != nil {
				c.many = true
				next, _ = a.app.FindCachedCollectionByNameOrId(via[1])
				fixed = at.backRows(next, via[2])
			}
		default:
			// a path into JSON, which stays in this table
			return operand{columns: []column{c}}
		}
		if next == nil {
			break // the rule cannot be evaluated, or the value is NULL
		}

		key += "." + name
		at = a.alias(key, next)
		at.fixed = fixed
		c.alias = at
		c.path = append(c.path, at)
	}

	return operand{columns: []column{c}}
}

// oneRow reports whether the query only has the row with one id.
func (al *alias) oneRow() bool {
	return len(al.fixed) == 1 && al.fixed[0].field == core.FieldNameId
}

// backRows are the rows of c that point to the one row of the table.
func (al *alias) backRows(c *core.Collection, field string) []match {
	if c == nil || !al.oneRow() {
		return nil
	}
	relation, ok := c.Fields.GetByName(field).(*core.RelationField)
	if !ok || relation.IsMultiple() {
		return nil
	}
	return []match{{field, al.fixed[0].value}}
}

// result says for each table which of its rows matter.
func (a *analysis) result(root *node) reads {
	r := reads{clock: a.clock, everything: a.unknown}

	for _, al := range a.aliases {
		if al.collection.IsView() {
			a.addView(&r, al.collection)
			continue
		}

		t := tableRead{collection: al.collection.Id, matches: al.fixed}
		if !al.allRows && !al.oneRow() && root != nil {
			t.matches = mergeMatches(t.matches, al.narrow(root))
		}
		if !slices.ContainsFunc(r.tables, t.equal) {
			r.tables = append(r.tables, t)
		}
	}

	return r
}

// addView adds what only the SQL of a view names.
func (a *analysis) addView(r *reads, view *core.Collection) {
	s, err := a.schemaOf(a.app)
	if err != nil {
		r.everything = true
		return
	}
	v := s.readsOf(view.Name)
	r.everything = r.everything || v.unknown
	r.clock = r.clock || v.clock
	for _, table := range v.tables {
		t := tableRead{collection: tableKey(table)}
		if c, err := a.app.FindCachedCollectionByNameOrId(table); err == nil {
			t.collection = c.Id
		}
		if !slices.ContainsFunc(r.tables, t.equal) {
			r.tables = append(r.tables, t)
		}
	}
}

func (t tableRead) equal(other tableRead) bool {
	return t.collection == other.collection && slices.Equal(t.matches, other.matches)
}

// narrow finds the conjunction that has all mentions of the alias, and in it
// the equalities that a row must fulfil to have any influence: a row that
// fails one of them makes the conjunction false whatever else it holds, and
// outside of the conjunction nothing looks at it.
func (al *alias) narrow(n *node) []match {
	var mentions []*node
	for _, child := range n.children {
		if al.mentionedBy(child) {
			mentions = append(mentions, child)
		}
	}

	if n.leaf == nil && len(mentions) == 1 && mentions[0].leaf == nil {
		return al.narrow(mentions[0])
	}
	if n.or && len(mentions) != 1 {
		return nil
	}

	var matches []match
	for _, child := range mentions {
		if child.leaf == nil {
			continue
		}
		for _, e := range child.leaf.equal {
			if e.alias == al {
				matches = append(matches, e.match)
			}
		}
	}
	return matches
}

// mergeMatches keeps one match per field, in the order of the fields' names.
func mergeMatches(a, b []match) []match {
	merged := slices.Clone(a)
	for _, m := range b {
		if !slices.ContainsFunc(merged, func(have match) bool { return have.field == m.field }) {
			merged = append(merged, m)
		}
	}
	slices.SortFunc(merged, func(a, b match) int { return strings.Compare(a.field, b.field) })
	return merged
}

func (al *alias) mentionedBy(n *node) bool {
	if n.leaf != nil {
		return slices.Contains(al.leaves, n.leaf)
	}
	return slices.ContainsFunc(n.children, al.mentionedBy)
}
