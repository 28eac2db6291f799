package topics

import (
	"regexp"
	"strings"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
)

// databaseSchema is what the main database has besides collections' settings: it says
// which tables a view reads.
type databaseSchema struct {
	objects  map[string]schemaObject // tables and views, by name in lower case
	triggers []schemaObject
}

type schemaObject struct {
	table string // whose writes set a trigger off
	sql   string // in lower case
	view  bool
}

// viewReads is what a view depends on.
type viewReads struct {
	tables  []string
	clock   bool
	unknown bool // it may be any
}

// tableKey stands for the id of a collection, for a table that is none.
func tableKey(name string) string { return "table:" + strings.ToLower(name) }

func readSchema(app core.App) (*databaseSchema, error) {
	var rows []struct {
		Type  string `db:"type"`
		Name  string `db:"name"`
		Table string `db:"tbl_name"`
		SQL   string `db:"sql"`
	}
	err := app.ConcurrentDB().
		NewQuery("SELECT type, name, tbl_name, COALESCE(sql, '') AS sql FROM sqlite_master WHERE type IN ('table', 'view', 'trigger')").
		All(&rows)
	if err != nil {
		return nil, err
	}

	s := &databaseSchema{objects: map[string]schemaObject{}}
	for _, r := range rows {
		o := schemaObject{table: strings.ToLower(r.Table), sql: strings.ToLower(r.SQL), view: r.Type == "view"}
		if r.Type == "trigger" {
			s.triggers = append(s.triggers, o)
		} else {
			s.objects[strings.ToLower(r.Name)] = o
		}
	}
	return s, nil
}

// readsOf finds each table whose name is in the SQL of the view, or of what the
// view reads: SQLite has no other way to name one. It may find too many.
func (s *databaseSchema) readsOf(view string) (v viewReads) {
	view = strings.ToLower(view)
	if _, ok := s.objects[view]; !ok {
		return viewReads{unknown: true}
	}

	found := map[string]bool{view: true}
	queue := []string{view}
	add := func(name string) {
		if _, known := s.objects[name]; known && !found[name] {
			found[name] = true
			queue = append(queue, name)
		}
	}
	for len(queue) > 0 {
		name := queue[0]
		queue = queue[1:]
		v.tables = append(v.tables, name)

		o := s.objects[name]
		if o.view {
			v.clock = v.clock || asksTime.MatchString(o.sql)
			v.unknown = v.unknown || s.callsUnknown(o.sql)
		}
		if o.readsOthers() {
			for other := range s.objects {
				if mentions(o.sql, other) {
					add(other)
				}
			}
		}
		for _, t := range s.triggers {
			if mentions(t.sql, name) {
				add(t.table) // a write to that one may change this one
			}
		}
	}
	return v
}

// readsOthers reports whether the rows depend on those of other tables: those
// of a view do, of a virtual table (such as a full text index of another table)
// and of one whose rows go or change with others.
func (o schemaObject) readsOthers() bool {
	return o.view || strings.HasPrefix(o.sql, "create virtual") || strings.Contains(o.sql, "references")
}

// mentions reports whether name is a word of the SQL, quoted or not.
func mentions(sql, name string) bool {
	if strings.ContainsAny(name, "\"'`[]") {
		return true // it may be written in other ways
	}
	for at := 0; ; {
		i := strings.Index(sql[at:], name)
		if i < 0 {
			return false
		}
		start, end := at+i, at+i+len(name)
		if (start == 0 || !inWord(sql[start-1])) && (end == len(sql) || !inWord(sql[end])) {
			return true
		}
		at = start + 1
	}
}

func inWord(b byte) bool {
	return b == '_' || b == '$' || b >= 0x80 || '0' <= b && b <= '9' || 'a' <= b && b <= 'z'
}

// asksTime finds SQL whose result changes by itself.
var asksTime = regexp.MustCompile(`\bnow\b|\bcurrent_(date|time|timestamp)\b|\brandom|\b(date|time|datetime|julianday|unixepoch)\s*\(\s*\)|\bstrftime\s*\([^,()]*\)`)

// callsUnknown reports whether the SQL calls a function that is not SQLite's
// own: an app can add some that read anything.
func (s *databaseSchema) callsUnknown(sql string) bool {
	if strings.Contains(sql, "/*") || strings.Contains(sql, "--") {
		return true // a comment may stand anywhere
	}
	for _, call := range sqlCall.FindAllStringSubmatch(sql, -1) {
		if _, isTable := s.objects[call[1]]; !isTable && !sqliteCalls[call[1]] {
			return true
		}
	}
	return false
}

var sqlCall = regexp.MustCompile("([\\w$\\x80-\\x{10FFFF}]+)[\"`\\]]?\\s*\\(")

// sqliteCalls are the functions of SQLite, and the words of SQL that may stand
// before a parenthesis.
var sqliteCalls = wordSet(`
	all and as between by case cast collate create distinct else end escape except exists filter from glob group having
	in inner intersect is join left like limit match materialized not offset on or order outer over partition regexp
	returning right select then union using values view when where with
	abs acos acosh asin asinh atan atan2 atanh avg ceil ceiling changes char coalesce concat concat_ws cos cosh count
	cume_dist date datetime degrees dense_rank exp first_value floor format glob group_concat hex if ifnull iif instr
	json json_array json_array_length json_each json_error_position json_extract json_group_array json_group_object
	json_insert json_object json_patch json_pretty json_quote json_remove json_replace json_set json_tree json_type
	json_valid jsonb jsonb_array jsonb_extract jsonb_group_array jsonb_group_object jsonb_insert jsonb_object
	jsonb_patch jsonb_remove jsonb_replace jsonb_set julianday lag last_value lead length like likelihood likely ln
	log log10 log2 lower ltrim max median min mod nth_value ntile nullif octet_length percent_rank percentile pi pow
	power printf quote radians random randomblob rank replace round row_number rtrim sign sin sinh soundex sqrt strftime
	string_agg substr substring subtype sum tan tanh time timediff total total_changes trim trunc typeof unhex unicode
	unistr unixepoch unlikely upper zeroblob
`)

func wordSet(words string) map[string]bool {
	set := map[string]bool{}
	for _, word := range strings.Fields(words) {
		set[word] = true
	}
	return set
}

// isAuxiliary reports whether a write to a table that is no collection is to the
// auxiliary database, such as one to PocketBase's logs: no rule can read that.
func (p *Plugin) isAuxiliary(e *core.ModelEvent) bool {
	if _, isLog := e.Model.(*core.Log); isLog {
		return true
	}
	name := e.Model.TableName()
	named, everything := p.grants.watches.mayTouch(name)
	if named || !everything {
		return false // then the question is worth no query
	}

	var found int
	err := e.App.ConcurrentDB().NewQuery("SELECT count(*) FROM sqlite_master WHERE name = {:name} COLLATE NOCASE").
		Bind(dbx.Params{"name": name}).Row(&found)
	return err == nil && found == 0
}
