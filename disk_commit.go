package topics

import (
	"database/sql"
	"errors"
	"slices"
	"strings"
	"time"
)

// isPassing reports whether an error is of the database as a whole and at this
// moment: it is locked, or has no room.
func isPassing(err error) bool {
	if err == nil || errors.Is(err, errSuperseded) {
		return false
	}
	text := strings.ToLower(err.Error())
	return slices.ContainsFunc([]string{"lock", "busy", "full", "i/o", "readonly", "read-only", "unable to open"}, func(word string) bool {
		return strings.Contains(text, word)
	})
}

// commit writes all states and as many of the messages as the time allows. It
// returns how many of these are done with.
func commit(db *sql.DB, states, messages []diskWrite, run string) (applied int, err error) {
	start := time.Now()
	applied = len(messages)
	tx, err := db.Begin()
	if err != nil {
		return applied, err
	}
	committed := false
	defer func() {
		if !committed { // also after a panic
			err = errors.Join(err, tx.Rollback())
		}
	}()

	// it also takes the lock: nobody else writes from here on
	result, err := tx.Exec("UPDATE _topicsState SET value = value WHERE id = 'run' AND value = ?", run)
	if err != nil {
		return applied, err
	}
	if own, err := result.RowsAffected(); err != nil || own == 0 {
		return applied, errors.Join(err, errSuperseded)
	}

	t := &diskTx{Tx: tx, run: run, heads: map[string]logHead{}}
	if len(messages) > 0 {
		t.insert, err = tx.Prepare("INSERT OR REPLACE INTO _topicsMessages (topic, position, epoch, time, event, leftOut, sender, data, repeat) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)")
		if err != nil {
			return applied, err
		}
		defer func() { _ = t.insert.Close() }() // the transaction's end closes it anyway
	}
	for _, w := range states {
		if err := w.apply(t); err != nil {
			return applied, err
		}
	}
	for i, w := range messages {
		if err := w.apply(t); err != nil {
			return applied, err
		}
		if time.Since(start) > diskBatchTime {
			applied = i + 1
			break
		}
	}
	if err := t.finish(); err != nil {
		return applied, err
	}
	committed = true // or the database has rolled back
	return applied, tx.Commit()
}
