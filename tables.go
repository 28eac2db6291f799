package topics

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// The tables of the histories, in PocketBase's auxiliary database: they are
// part of its backups, and of no collection.
const diskSchema = `
CREATE TABLE IF NOT EXISTS _topicsMessages (
	topic    TEXT NOT NULL,
	position INTEGER NOT NULL,
	epoch    TEXT NOT NULL,
	time     INTEGER NOT NULL,
	event    TEXT NOT NULL,
	leftOut  TEXT NOT NULL,
	sender   TEXT NOT NULL,
	data     TEXT NOT NULL,
	PRIMARY KEY (topic, position)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS _topicsLogs (
	topic TEXT PRIMARY KEY,
	epoch TEXT NOT NULL,
	last  INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS _topicsPositions (
	id       TEXT PRIMARY KEY,
	epoch    TEXT NOT NULL,
	position INTEGER NOT NULL,
	expires  INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS _topicsMembers (
	topic      TEXT NOT NULL,
	collection TEXT NOT NULL,
	id         TEXT NOT NULL,
	run        TEXT NOT NULL,
	state      TEXT NOT NULL,
	since      INTEGER NOT NULL,
	PRIMARY KEY (topic, collection, id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS _topicsState (
	id    TEXT PRIMARY KEY,
	value TEXT NOT NULL
) WITHOUT ROWID;`

// openTables returns whether the last stop was clean. If not, no epoch goes on.
func openTables(db *sql.DB) (clean bool, err error) {
	if _, err := db.Exec(diskSchema); err != nil {
		return false, fmt.Errorf("topics: failed to create the tables of the history: %w", err)
	}
	var state string
	stateErr := db.QueryRow("SELECT value FROM _topicsState WHERE id = 'stop'").Scan(&state)
	if stateErr != nil && !errors.Is(stateErr, sql.ErrNoRows) {
		return false, fmt.Errorf("topics: failed to read the state of the history: %w", stateErr)
	}
	if _, err := db.Exec("INSERT OR REPLACE INTO _topicsState VALUES ('stop', 'unclean')"); err != nil {
		return false, fmt.Errorf("topics: failed to write the state of the history: %w", err)
	}
	if _, err := db.Exec("DELETE FROM _topicsPositions WHERE expires < ?", time.Now().UnixNano()); err != nil {
		return false, fmt.Errorf("topics: failed to prune the positions: %w", err)
	}

	// a database without a state has no histories either
	clean = state == "clean" || errors.Is(stateErr, sql.ErrNoRows)
	if !clean {
		if _, err := db.Exec("DELETE FROM _topicsLogs"); err != nil {
			return false, fmt.Errorf("topics: failed to end the epochs of the history: %w", err)
		}
	}
	return clean, nil
}

// leftBehind is what earlier processes have left for the members.
type leftBehind struct {
	secret string    // guests' ids are made with it
	alive  time.Time // when members were there, within aliveEvery
}

func readLeftBehind(db *sql.DB) (left leftBehind, err error) {
	if _, err := db.Exec("INSERT OR IGNORE INTO _topicsState VALUES ('secret', ?)", newSecret()); err != nil {
		return left, fmt.Errorf("topics: failed to write the secret of the members' ids: %w", err)
	}
	if err := db.QueryRow("SELECT value FROM _topicsState WHERE id = 'secret'").Scan(&left.secret); err != nil {
		return left, fmt.Errorf("topics: failed to read the secret of the members' ids: %w", err)
	}
	var alive int64
	if err := db.QueryRow("SELECT value FROM _topicsState WHERE id = 'alive'").Scan(&alive); err != nil && !errors.Is(err, sql.ErrNoRows) {
		return left, fmt.Errorf("topics: failed to read when there were members: %w", err)
	}
	left.alive = time.Unix(0, alive)
	return left, nil
}

func commit(db *sql.DB, batch []diskWrite, run string) (err error) {
	tx, err := db.Begin()
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, tx.Rollback())
		}
	}()

	insert, err := tx.Prepare("INSERT OR REPLACE INTO _topicsMessages VALUES (?, ?, ?, ?, ?, ?, ?, ?)")
	if err != nil {
		return err
	}
	defer func() { _ = insert.Close() }() // the transaction's end closes it anyway

	first := map[string]uint64{}
	alive := false
	for _, w := range batch {
		alive = alive || w.member != nil || w.alive
		switch {
		case w.entry != nil:
			m := w.entry.message
			sender := ""
			if m.Sender != nil {
				raw, err := json.Marshal(m.Sender)
				if err != nil {
					return err
				}
				sender = string(raw)
			}
			if _, err = insert.Exec(m.Topic, int64(w.entry.offset), w.entry.epoch, m.Time.UnixNano(), m.Event, m.Except, sender, string(m.Data)); err != nil {
				return err
			}
			first[w.topic] = w.first
		case w.position != nil:
			p := w.position
			if _, err = tx.Exec("INSERT OR REPLACE INTO _topicsPositions VALUES (?, ?, ?, ?)", p.id, p.epoch, int64(p.offset), p.expires.UnixNano()); err != nil {
				return err
			}
		case !w.expire.IsZero():
			if _, err = tx.Exec("DELETE FROM _topicsPositions WHERE expires < ?", w.expire.UnixNano()); err != nil {
				return err
			}
		case w.member != nil:
			if err = commitMember(tx, *w.member, run); err != nil {
				return err
			}
		case w.alive:
		case w.forgetMembers:
			if _, err = tx.Exec("DELETE FROM _topicsMembers WHERE run <> ?", run); err != nil {
				return err
			}
		case w.forget:
			delete(first, w.topic)
			if _, err = tx.Exec("DELETE FROM _topicsMessages WHERE topic = ?", w.topic); err != nil {
				return err
			}
			if _, err = tx.Exec("DELETE FROM _topicsLogs WHERE topic = ?", w.topic); err != nil {
				return err
			}
		default:
			first[w.topic] = w.first
		}
	}
	if alive {
		if _, err = tx.Exec("INSERT OR REPLACE INTO _topicsState VALUES ('alive', ?)", strconv.FormatInt(time.Now().UnixNano(), 10)); err != nil {
			return err
		}
	}
	for topic, offset := range first {
		if _, err = tx.Exec("DELETE FROM _topicsMessages WHERE topic = ? AND position < ?", topic, int64(offset)); err != nil {
			return err
		}
	}
	return tx.Commit()
}

func commitMember(tx *sql.Tx, m savedMember, run string) (err error) {
	if m.gone {
		_, err = tx.Exec("DELETE FROM _topicsMembers WHERE topic = ? AND collection = ? AND id = ?", m.topic, m.key.collection, m.key.id)
		return err
	}
	_, err = tx.Exec("INSERT OR REPLACE INTO _topicsMembers VALUES (?, ?, ?, ?, ?, ?)",
		m.topic, m.key.collection, m.key.id, run, string(m.state), m.since.UnixNano())
	return err
}

func readEntry(rows *sql.Rows, topic string) (*entry, error) {
	var (
		e            = &entry{message: Message{Topic: topic}}
		at           int64
		sender, data string
	)
	if err := rows.Scan(&e.offset, &e.epoch, &at, &e.message.Event, &e.message.Except, &sender, &data); err != nil {
		return nil, err
	}
	e.message.Time = time.Unix(0, at)
	e.message.Data = json.RawMessage(data)
	if sender != "" {
		e.message.Sender = new(Sender)
		if err := json.Unmarshal([]byte(sender), e.message.Sender); err != nil {
			return nil, err
		}
	}
	e.plain = newDataLine(e.message.Data)
	return e, nil
}
