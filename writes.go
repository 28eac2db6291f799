package topics

import (
	"database/sql"
	"errors"
	"runtime"
	"sync"
	"weak"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/inflector"
)

// writes finds out which rows each write has changed, and reports them as soon
// as the commit is certain: for a transaction when it is complete, else right
// after the write. Success hooks would be too late or, if somebody's handler
// returns an error for a write that was made, never come.
//
// The rows are read from the database, next to the write: a model may be
// partial, or older than its row.
type writes struct {
	report func(w written)

	mu       sync.Mutex
	inFlight map[rowID]*overlap
	waiting  map[transaction][]func()
}

// transaction does not keep PocketBase's from being collected: then its end,
// which is not told after a panic, is certain.
type transaction = weak.Pointer[core.TxAppInfo]

// written is what one write has done to a collection.
type written struct {
	collection string // id, or the tableKey of another table

	// rows are the values before and after, if known
	rows  []row
	known bool
}

type rowID struct {
	collection string
	id         any
}

// overlap counts the writes of one row that are not reported yet. Where they
// mix, neither knows what the row held in between.
type overlap struct {
	tx    transaction
	count int
	mixed bool
}

func newWrites(report func(written)) *writes {
	return &writes{
		report:   report,
		inFlight: map[rowID]*overlap{},
		waiting:  map[transaction][]func(){},
	}
}

// during runs next, which writes the model to the table of c, and reports the
// write. Without fields, or without a collection, nothing is read.
func (ws *writes) during(app core.App, model core.Model, c *core.Collection, fields []string, next func() error) error {
	tx := dataTransaction(app)
	w := written{collection: tableKey(model.TableName())}
	if c != nil {
		w.collection = c.Id
	}

	if len(fields) == 0 {
		written := true // a panic may have come after the write
		defer func() {
			if written {
				ws.complete(tx, func() { ws.report(w) })
			}
		}()
		err := next()
		written = err == nil
		return err
	}

	id := rowID{c.Id, model.LastSavedPK()}
	if id.id == nil || id.id == "" {
		id.id = model.PK() // it is created
	}
	ws.begin(id, tx)
	returned := false
	defer func() {
		if !returned {
			ws.complete(tx, func() {
				ws.end(id)
				ws.report(w)
			})
		}
	}()
	before, beforeErr := readRow(app, c, model.LastSavedPK(), fields)

	if err := next(); err != nil {
		returned = true
		ws.end(id)
		return err
	}

	after, afterErr := readRow(app, c, model.PK(), fields)
	returned = true
	for _, r := range []row{before, after} {
		if r != nil {
			w.rows = append(w.rows, r)
		}
	}
	ws.complete(tx, func() {
		w.known = !ws.end(id) && beforeErr == nil && afterErr == nil
		ws.report(w)
	})
	return nil
}

// dataTransaction returns the transaction that writes of records are part of.
// (An app of the auxiliary database's transaction writes records outside it.)
func dataTransaction(app core.App) *core.TxAppInfo {
	if _, ok := app.NonconcurrentDB().(*dbx.Tx); !ok {
		return nil
	}
	return app.TxInfo()
}

func (ws *writes) begin(id rowID, tx *core.TxAppInfo) {
	ws.mu.Lock()
	defer ws.mu.Unlock()

	o, own := ws.inFlight[id], weak.Make(tx)
	if o == nil {
		o = &overlap{tx: own}
		ws.inFlight[id] = o
	} else if tx == nil || o.tx != own {
		o.mixed = true
	}
	o.count++
}

// end reports whether the row had other writes at the same time.
func (ws *writes) end(id rowID) (mixed bool) {
	ws.mu.Lock()
	defer ws.mu.Unlock()

	o := ws.inFlight[id]
	o.count--
	if o.count == 0 {
		delete(ws.inFlight, id)
	}
	return o.mixed
}

// complete calls report when the transaction is complete, or at once without
// one. A rollback is reported too: it only costs a decision.
func (ws *writes) complete(tx *core.TxAppInfo, report func()) {
	if tx == nil {
		report()
		return
	}

	key := weak.Make(tx)
	ws.mu.Lock()
	isFirst := ws.waiting[key] == nil
	ws.waiting[key] = append(ws.waiting[key], report)
	ws.mu.Unlock()

	if isFirst {
		tx.OnComplete(func(error) error {
			ws.flush(tx)
			return nil
		})
		runtime.AddCleanup(tx, ws.flushKey, key)
	}
}

// flush reports all writes of a transaction that is complete. A message that
// waits for the same transaction calls it before it is sent.
func (ws *writes) flush(tx *core.TxAppInfo) { ws.flushKey(weak.Make(tx)) }

// flushKey also runs in the runtime's goroutine: it waits for nobody.
func (ws *writes) flushKey(key transaction) {
	ws.mu.Lock()
	reports := ws.waiting[key]
	delete(ws.waiting, key)
	ws.mu.Unlock()

	for _, report := range reports {
		report()
	}
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
