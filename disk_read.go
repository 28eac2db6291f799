package topics

import (
	"context"
	"database/sql"
	"errors"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
)

// reader returns the database to read from, if there is a disk.
func (d *disk) reader(app core.App) (*sql.DB, error) {
	d.mu.Lock()
	ready, superseded := d.ready, d.superseded
	d.mu.Unlock()
	switch {
	case superseded:
		return nil, errSuperseded
	case !ready:
		return nil, errNotReady
	}
	db, ok := app.AuxConcurrentDB().(*dbx.DB)
	if !ok {
		return nil, errors.New("topics: histories cannot be read inside a transaction of the auxiliary database")
	}
	return db.DB(), nil
}

// read returns the messages of a topic that the disk has, from that offset on
// and before the other, oldest first.
func (d *disk) read(ctx context.Context, app core.App, topic string, from, before uint64) ([]*entry, error) {
	db, err := d.reader(app)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, diskReadTime)
	defer cancel()

	rows, err := db.QueryContext(ctx,
		"SELECT position, epoch, time, event, leftOut, sender, data, repeat FROM _topicsMessages WHERE topic = ? AND position >= ? AND position < ? ORDER BY position",
		topic, int64(from), int64(before))
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // rows.Err says what there is to say
	var entries []*entry
	for rows.Next() {
		e, err := readEntry(rows, topic)
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, rows.Err()
}
