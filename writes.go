package topics

import (
	"database/sql"
	"errors"
	"reflect"
	"sync"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/inflector"
)

// writes remembers what a model's rows held before and after each write, from
// the write until its commit or rollback is known.
//
// The values are read from the database, next to the write and in its
// transaction: a model may be partial, or older than the row.
type writes struct {
	mu      sync.Mutex
	pending map[core.Model]*pendingWrite
}

// pendingWrite collects the writes of one model, of which a transaction may
// have several. Each of them is reported separately.
type pendingWrite struct {
	reports int
	known   bool // false: some write's rows could not be read
	rows    []row
}

func newWrites() *writes {
	return &writes{pending: map[core.Model]*pendingWrite{}}
}

// during runs next, which writes the model to the collection's table, and
// remembers the values of the fields.
func (w *writes) during(app core.App, model core.Model, c *core.Collection, fields []string, next func() error) error {
	if len(fields) == 0 {
		// every row matters alike
		if err := next(); err != nil {
			return err
		}
		w.remember(model, true, row{})
		return nil
	}

	before, beforeErr := readRow(app, c, model.LastSavedPK(), fields)

	if err := next(); err != nil {
		return err
	}

	after, afterErr := readRow(app, c, model.PK(), fields)

	w.remember(model, beforeErr == nil && afterErr == nil, before, after)

	return nil
}

func (w *writes) remember(model core.Model, known bool, rows ...row) {
	if !reflect.TypeOf(model).Comparable() {
		return
	}

	w.mu.Lock()
	defer w.mu.Unlock()

	p := w.pending[model]
	if p == nil {
		p = &pendingWrite{known: true}
		w.pending[model] = p
	}
	p.reports++
	p.known = p.known && known
	for _, r := range rows {
		if r != nil {
			p.rows = append(p.rows, r)
		}
	}
}

// report returns what is known of a model's writes when one of them was
// committed or rolled back.
func (w *writes) report(model core.Model) (known bool, rows []row) {
	if !reflect.TypeOf(model).Comparable() {
		return false, nil
	}

	w.mu.Lock()
	defer w.mu.Unlock()

	p := w.pending[model]
	if p == nil {
		return false, nil // nobody watched the collection at the time
	}
	p.reports--
	if p.reports == 0 {
		delete(w.pending, model)
	}
	return p.known, p.rows
}

// readRow returns nil if there is no such row.
func readRow(app core.App, c *core.Collection, id any, fields []string) (row, error) {
	if id == nil || id == "" {
		return nil, nil
	}

	columns := make([]string, len(fields))
	for i, field := range fields {
		columns[i] = c.Name + "." + inflector.Columnify(field)
	}
	values := dbx.NullStringMap{}
	err := app.ConcurrentDB().Select(columns...).From(c.Name).
		Where(dbx.HashExp{c.Name + ".id": id}).Limit(1).One(&values)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}

	r := make(row, len(fields))
	for _, field := range fields {
		r[field] = values[field].String
	}
	return r, nil
}

// collectionOf returns the collection that a model is a record of, or nil.
func collectionOf(app core.App, model core.Model) *core.Collection {
	switch m := model.(type) {
	case *core.Record:
		return m.Collection()
	case core.RecordProxy:
		if record := m.ProxyRecord(); record != nil {
			return record.Collection()
		}
		return nil
	}

	// a custom model may use a collection's table
	c, err := app.FindCachedCollectionByNameOrId(model.TableName())
	if err != nil {
		return nil
	}
	return c
}
