package topics

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// tablesVersion is that of the tables below. A data directory says which one it
// has; one without is of version 1.
const tablesVersion = 2

// diskTables are in PocketBase's auxiliary database: they are part of its
// backups, and of no collection.
var diskTables = []diskTable{
	{"_topicsMessages", []string{
		"topic TEXT NOT NULL",
		"position INTEGER NOT NULL",
		"epoch TEXT NOT NULL",
		"time INTEGER NOT NULL",
		"event TEXT NOT NULL",
		"leftOut TEXT NOT NULL",
		"sender TEXT NOT NULL",
		"data TEXT NOT NULL",
		"repeat BLOB NOT NULL DEFAULT x''",
	}, "topic, position"},
	{"_topicsLogs", []string{
		"topic TEXT NOT NULL",
		"epoch TEXT NOT NULL",
		"last INTEGER NOT NULL",
		"begun TEXT NOT NULL DEFAULT ''",
		"first INTEGER NOT NULL DEFAULT 0",
		"kept INTEGER NOT NULL DEFAULT 0",
		"newest INTEGER NOT NULL DEFAULT 0",
		"owner TEXT NOT NULL DEFAULT ''",
	}, "topic"},
	{"_topicsPositions", []string{
		"id TEXT NOT NULL",
		"epoch TEXT NOT NULL",
		"position INTEGER NOT NULL",
		"expires INTEGER NOT NULL",
		"topic TEXT NOT NULL DEFAULT ''",
		"owner TEXT NOT NULL DEFAULT ''",
	}, "id"},
	{"_topicsMembers", []string{
		"topic TEXT NOT NULL",
		"collection TEXT NOT NULL",
		"id TEXT NOT NULL",
		"run TEXT NOT NULL",
		"state TEXT NOT NULL",
		"since INTEGER NOT NULL",
	}, "topic, collection, id"},
	{"_topicsEpochs", []string{
		"name TEXT NOT NULL",
		"segment INTEGER NOT NULL",
	}, "name"},
	{"_topicsState", []string{
		"id TEXT NOT NULL",
		"value TEXT NOT NULL",
	}, "id"},
}

type diskTable struct {
	name    string
	columns []string // with their types
	key     string
}

// open makes the table, or adds the columns that it lacks.
func (t diskTable) open(tx *sql.Tx) error {
	_, err := tx.Exec(fmt.Sprintf("CREATE TABLE IF NOT EXISTS %s (%s, PRIMARY KEY (%s)) WITHOUT ROWID", t.name, strings.Join(t.columns, ", "), t.key))
	if err != nil {
		return err
	}
	has, key, err := t.columnsOf(tx)
	if err != nil {
		return err
	}
	if found := strings.Join(key, ", "); found != t.key {
		return fmt.Errorf("the table %s has the key (%s) instead of (%s)", t.name, found, t.key)
	}
	for _, column := range t.columns {
		name, _, _ := strings.Cut(column, " ")
		if slices.Contains(has, name) {
			continue
		}
		// SQLite refuses it for a column without a default: then the table is
		// none of ours
		if _, err := tx.Exec("ALTER TABLE " + t.name + " ADD COLUMN " + column); err != nil {
			return fmt.Errorf("the table %s has no column %s: %w", t.name, name, err)
		}
	}
	return nil
}

func (t diskTable) columnsOf(tx *sql.Tx) (names, key []string, err error) {
	rows, err := tx.Query("SELECT name, pk FROM pragma_table_info(?) ORDER BY pk", t.name)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = rows.Close() }() // rows.Err says what there is to say
	for rows.Next() {
		var (
			name string
			pk   int
		)
		if err := rows.Scan(&name, &pk); err != nil {
			return nil, nil, err
		}
		names = append(names, name)
		if pk > 0 {
			key = append(key, name)
		}
	}
	return names, key, rows.Err()
}

// leftBehind is what earlier processes have left on the disk.
type leftBehind struct {
	opened bool // now, and not before

	clean     bool         // the last stop was clean
	epochs    []savedEpoch // the last one is that of this start
	heads     []logHead
	positions []savedPosition

	secret string    // guests' ids are made with it
	alive  time.Time // when members were there, within aliveEvery
}

// openTables makes the tables those of this version, takes them over for this
// process, and reads what is needed at once. It is one transaction: either all
// of it is done, or nothing.
func openTables(db *sql.DB, run string, maxPositions int) (left leftBehind, err error) {
	tx, err := db.Begin()
	if err != nil {
		return left, fmt.Errorf("topics: failed to open the histories: %w", err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("topics: failed to open the histories: %w", errors.Join(err, tx.Rollback()))
		}
	}()

	t := &diskTx{Tx: tx, run: run}
	version, err := t.upgrade()
	if err != nil {
		return left, err
	}

	stop, known, err := t.state("stop")
	if err != nil {
		return left, err
	}
	// a database without a state has no histories either
	left.clean = stop == "clean" || !known

	secret, known, err := t.state("secret")
	if err != nil {
		return left, err
	}
	left.secret = secret
	if !known {
		left.secret = newSecret()
	}
	alive, _, err := t.state("alive")
	if err != nil {
		return left, err
	}
	nanoseconds, _ := strconv.ParseInt(alive, 10, 64) // none is long ago
	left.alive = time.Unix(0, nanoseconds)

	for id, value := range map[string]string{"stop": "unclean", "secret": left.secret, "run": run, "version": strconv.Itoa(tablesVersion)} {
		if err := t.setState(id, value); err != nil {
			return left, err
		}
	}
	if version < 2 {
		if err := t.findHeads(); err != nil {
			return left, err
		}
	}
	if left.heads, err = t.readHeads(); err != nil {
		return left, err
	}
	if left.epochs, err = t.readEpochs(left.clean); err != nil {
		return left, err
	}
	if left.positions, err = t.readPositions(maxPositions); err != nil {
		return left, err
	}
	return left, tx.Commit()
}

// upgrade opens the tables, and returns the version that they had.
func (tx *diskTx) upgrade() (version int, err error) {
	state := diskTables[len(diskTables)-1]
	if err := state.open(tx.Tx); err != nil {
		return 0, err
	}
	text, known, err := tx.state("version")
	if err != nil {
		return 0, err
	}
	version = 1
	if known {
		if version, err = strconv.Atoi(text); err != nil {
			return 0, fmt.Errorf("the version of the tables is %q, which is no number", text)
		}
	}
	if version > tablesVersion {
		return 0, fmt.Errorf("the tables are of version %d, and this program knows up to %d: start the newer program again, or delete the tables", version, tablesVersion)
	}
	for _, t := range diskTables {
		if err := t.open(tx.Tx); err != nil {
			return 0, err
		}
	}
	return version, nil
}

func (tx *diskTx) state(id string) (value string, known bool, err error) {
	err = tx.QueryRow("SELECT value FROM _topicsState WHERE id = ?", id).Scan(&value)
	if errors.Is(err, sql.ErrNoRows) {
		return "", false, nil
	}
	return value, err == nil, err
}

// findHeads makes the rows of logs that version 1 did not have: it had them of
// a clean stop only, and without the columns that are new.
func (tx *diskTx) findHeads() error {
	_, err := tx.Exec(`
		INSERT INTO _topicsLogs (topic, epoch, last, first, kept, newest)
		SELECT topic, max(epoch), max(position), min(position), sum(length(CAST(data AS BLOB)) + ?), max(time) FROM _topicsMessages WHERE true GROUP BY topic
		ON CONFLICT (topic) DO UPDATE SET first = excluded.first, kept = excluded.kept, newest = excluded.newest,
			epoch = CASE WHEN excluded.last > last THEN excluded.epoch ELSE epoch END, last = max(last, excluded.last)`, entryOverhead)
	if err != nil {
		return err
	}
	// each has an epoch of its own there
	if _, err = tx.Exec("UPDATE _topicsLogs SET begun = epoch"); err != nil {
		return err
	}
	// of a clean stop, without any messages left
	_, err = tx.Exec("UPDATE _topicsLogs SET first = last + 1, newest = ? WHERE first = 0", time.Now().UnixNano())
	return err
}

func (tx *diskTx) readHeads() (heads []logHead, err error) {
	rows, err := tx.Query("SELECT topic, epoch, begun, last, first, kept, newest, owner FROM _topicsLogs ORDER BY newest")
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // rows.Err says what there is to say
	for rows.Next() {
		var (
			h      logHead
			newest int64
		)
		if err := rows.Scan(&h.topic, &h.epoch, &h.begun, &h.last, &h.first, &h.kept, &newest, &h.owner); err != nil {
			return nil, err
		}
		h.newest = time.Unix(0, newest)
		heads = append(heads, h)
	}
	return heads, rows.Err()
}

// firstEpoch comes before all others. The epochs of version 1, which the chain
// does not have, count as linked to it.
const firstEpoch = "0"

// readEpochs reads the chain, and begins the epoch of this start.
func (tx *diskTx) readEpochs(linked bool) (list []savedEpoch, err error) {
	rows, err := tx.Query("SELECT name, segment FROM _topicsEpochs ORDER BY name")
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // rows.Err says what there is to say
	for rows.Next() {
		var e savedEpoch
		if err := rows.Scan(&e.name, &e.segment); err != nil {
			return nil, err
		}
		list = append(list, e)
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}

	var c chain
	if len(list) == 0 {
		list = []savedEpoch{{name: firstEpoch}}
		if err := (epochWrite{list[0]}).apply(tx); err != nil {
			return nil, err
		}
	}
	c.take(list)
	// what version 1 has given
	var newest sql.NullString
	if err := tx.QueryRow("SELECT max(epoch) FROM _topicsLogs").Scan(&newest); err != nil {
		return nil, err
	}
	c.saw(newest.String)
	started := c.begin(linked)
	if err := (epochWrite{started}).apply(tx); err != nil {
		return nil, err
	}
	if n := len(list) + 1 - maxEpochs; n > 0 {
		if _, err := tx.Exec("DELETE FROM _topicsEpochs WHERE name <= ?", list[n-1].name); err != nil {
			return nil, err
		}
		list = list[n:]
	}
	return append(list, started), nil
}

// readPositions reads those that are still valid, up to so many, and deletes
// all others.
func (tx *diskTx) readPositions(most int) (positions []savedPosition, err error) {
	now := time.Now().UnixNano()
	// version 1 did not know the topic of a position
	if _, err := tx.Exec("DELETE FROM _topicsPositions WHERE expires < ?", now); err != nil {
		return nil, err
	}
	if _, err := tx.Exec("DELETE FROM _topicsPositions WHERE id IN (SELECT id FROM _topicsPositions ORDER BY expires DESC LIMIT -1 OFFSET ?)", most); err != nil {
		return nil, err
	}
	rows, err := tx.Query("SELECT id, topic, owner, epoch, position, expires FROM _topicsPositions ORDER BY expires")
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // rows.Err says what there is to say
	for rows.Next() {
		var (
			p       savedPosition
			expires int64
		)
		var offset int64
		if err := rows.Scan(&p.id, &p.topic, &p.owner, &p.epoch, &offset, &expires); err != nil {
			return nil, err
		}
		if offset < 0 {
			continue // none of ours
		}
		p.offset = uint64(offset)
		p.expires = time.Unix(0, expires)
		positions = append(positions, p)
	}
	return positions, rows.Err()
}

// markClean says that everything was written, unless another process has taken
// over.
func markClean(ctx context.Context, db *sql.DB, run string, heads []logHead) (err error) {
	sqlTx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, sqlTx.Rollback())
		}
	}()
	result, err := sqlTx.Exec("UPDATE _topicsState SET value = value WHERE id = 'run' AND value = ?", run)
	if err != nil {
		return err
	}
	if own, err := result.RowsAffected(); err != nil || own == 0 {
		return errors.Join(err, errSuperseded)
	}
	tx := &diskTx{Tx: sqlTx, run: run, heads: map[string]logHead{}}
	for _, head := range heads {
		tx.heads[head.topic] = head
	}
	if err := tx.finish(); err != nil {
		return err
	}
	if err := tx.setState("stop", "clean"); err != nil {
		return err
	}
	return sqlTx.Commit()
}

func readEntry(rows *sql.Rows, topic string) (*entry, error) {
	var (
		e            = &entry{message: Message{Topic: topic}}
		at           int64
		sender, data string
		repeat       []byte
	)
	if err := rows.Scan(&e.offset, &e.epoch, &at, &e.message.Event, &e.message.Except, &sender, &data, &repeat); err != nil {
		return nil, err
	}
	copy(e.message.repeat[:], repeat)
	e.message.Time = time.Unix(0, at)
	e.plain = newDataLine([]byte(data))
	e.message.Data = json.RawMessage(e.plain.json())
	if sender != "" {
		e.message.Sender = new(Sender)
		if err := json.Unmarshal([]byte(sender), e.message.Sender); err != nil {
			return nil, err
		}
	}
	return e, nil
}
