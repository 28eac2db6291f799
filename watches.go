package topics

import (
	"slices"
	"strings"
	"sync"
)

// watches knows which grants a write can touch. Writes to collections that no
// open subscription depends on cost one look-up.
type watches struct {
	mu         sync.RWMutex
	tables     map[string]*tableWatch // by collection id
	everything map[*grant]struct{}
}

// tableWatch has the grants that depend on one collection, by the fields whose
// values tie a row to them. Without such fields every row matters.
type tableWatch struct {
	byFields map[string]*fieldsWatch
}

// fieldsWatch has the grants by the values of the same fields.
type fieldsWatch struct {
	fields  []string
	byValue map[string]map[*grant]struct{}
}

func newWatches() *watches {
	return &watches{tables: map[string]*tableWatch{}, everything: map[*grant]struct{}{}}
}

func (t tableRead) fields() []string {
	fields := make([]string, len(t.matches))
	for i, m := range t.matches {
		fields[i] = m.field
	}
	return fields
}

func (t tableRead) value() string {
	values := make([]string, len(t.matches))
	for i, m := range t.matches {
		values[i] = m.value
	}
	return joinValues(values)
}

// joinValues cannot mix values up: none of the fields that are matched can
// hold a NUL in PocketBase, and if one did, more would be touched, not less.
func joinValues(values []string) string { return strings.Join(values, "\x00") }

func (w *watches) add(g *grant, r reads) {
	w.mu.Lock()
	defer w.mu.Unlock()

	if r.everything {
		w.everything[g] = struct{}{}
	}
	for _, t := range r.tables {
		table := w.tables[t.collection]
		if table == nil {
			table = &tableWatch{byFields: map[string]*fieldsWatch{}}
			w.tables[t.collection] = table
		}

		fields := t.fields()
		name := joinValues(fields)
		watch := table.byFields[name]
		if watch == nil {
			watch = &fieldsWatch{fields: fields, byValue: map[string]map[*grant]struct{}{}}
			table.byFields[name] = watch
		}

		value := t.value()
		if watch.byValue[value] == nil {
			watch.byValue[value] = map[*grant]struct{}{}
		}
		watch.byValue[value][g] = struct{}{}
	}
}

func (w *watches) remove(g *grant, r reads) {
	w.mu.Lock()
	defer w.mu.Unlock()

	if r.everything {
		delete(w.everything, g)
	}
	for _, t := range r.tables {
		table := w.tables[t.collection]
		name := joinValues(t.fields())
		watch := table.byFields[name]
		value := t.value()

		delete(watch.byValue[value], g)
		if len(watch.byValue[value]) == 0 {
			delete(watch.byValue, value)
		}
		if len(watch.byValue) == 0 {
			delete(table.byFields, name)
		}
		if len(table.byFields) == 0 {
			delete(w.tables, t.collection)
		}
	}
}

// fieldsOf returns the fields of a collection whose values narrow what a write
// touches.
func (w *watches) fieldsOf(collection string) (fields []string) {
	w.mu.RLock()
	defer w.mu.RUnlock()

	table := w.tables[collection]
	if table == nil {
		return nil
	}
	for _, watch := range table.byFields {
		for _, field := range watch.fields {
			if !slices.Contains(fields, field) {
				fields = append(fields, field)
			}
		}
	}
	return fields
}

// mayTouch reports whether a write to a table that is no collection has grants
// that name it, and whether there are some that depend on all tables.
func (w *watches) mayTouch(table string) (named, everything bool) {
	w.mu.RLock()
	defer w.mu.RUnlock()

	return w.tables[tableKey(table)] != nil, len(w.everything) > 0
}

// row is the values of a row's fields before or after a write, as far as they
// are known.
type row map[string]string

// touched returns the grants that a write of these rows can change. A watch
// on a field that rows do not know is touched whole, as is one when the rows
// are not known at all.
func (w *watches) touched(collection string, known bool, rows []row) []*grant {
	w.mu.RLock()
	defer w.mu.RUnlock()

	var grants []*grant
	for g := range w.everything {
		grants = append(grants, g)
	}

	table := w.tables[collection]
	if table == nil {
		return grants
	}
	for _, watch := range table.byFields {
		grants = watch.touched(known, rows, grants)
	}
	return grants
}

func (w *fieldsWatch) touched(known bool, rows []row, grants []*grant) []*grant {
	if known && !slices.ContainsFunc(rows, func(r row) bool { return !r.has(w.fields) }) {
		for _, r := range rows {
			for g := range w.byValue[r.value(w.fields)] {
				grants = append(grants, g)
			}
		}
		return grants
	}

	for _, tied := range w.byValue {
		for g := range tied {
			grants = append(grants, g)
		}
	}
	return grants
}

func (r row) has(fields []string) bool {
	return !slices.ContainsFunc(fields, func(f string) bool { _, ok := r[f]; return !ok })
}

func (r row) value(fields []string) string {
	values := make([]string, len(fields))
	for i, f := range fields {
		values[i] = r[f]
	}
	return joinValues(values)
}

func (r reads) equal(other reads) bool {
	if r.clock != other.clock || r.everything != other.everything || len(r.tables) != len(other.tables) {
		return false
	}
	return len(r.without(other).tables) == 0
}

// without returns the reads that other does not have.
func (r reads) without(other reads) reads {
	left := reads{everything: r.everything && !other.everything}
	for _, t := range r.tables {
		if !containsTable(other.tables, t) {
			left.tables = append(left.tables, t)
		}
	}
	return left
}

func containsTable(tables []tableRead, t tableRead) bool {
	for _, other := range tables {
		if t.equal(other) {
			return true
		}
	}
	return false
}
