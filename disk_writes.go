package topics

import (
	"database/sql"
	"encoding/json"
	"strconv"
	"time"
)

// diskWrite is one change of the tables. Writes are applied in the order in
// which they were added, many in one transaction.
type diskWrite interface {
	apply(tx *diskTx) error

	// size is the memory that the write takes while it waits.
	size() int
}

// diskTx is the transaction that writes are applied in.
type diskTx struct {
	*sql.Tx
	run    string
	insert *sql.Stmt // of a message

	// what is written once at the end
	heads map[string]logHead
	alive bool
}

// logHead is what the tables know of a topic's log besides its messages.
type logHead struct {
	topic       string
	epoch       string
	begun       string
	first, last uint64
	kept        int
	newest      time.Time
	owner       owner
}

func (l *topicLog) head() logHead {
	return logHead{topic: l.topic, epoch: l.epoch, begun: l.begun, first: l.first, last: l.last, kept: l.kept, newest: l.newest, owner: l.owner}
}

// messageWrite is a message, with the head of its log after it.
type messageWrite struct {
	entry *entry
	head  logHead
}

func (w messageWrite) size() int { return w.entry.size() }

func (w messageWrite) apply(tx *diskTx) error {
	m := w.entry.message
	sender := ""
	if m.Sender != nil {
		raw, err := json.Marshal(m.Sender)
		if err != nil {
			return err
		}
		sender = string(raw)
	}
	repeat := []byte{}
	if m.repeat != (repeatKey{}) {
		repeat = m.repeat[:]
	}
	tx.heads[w.head.topic] = w.head
	_, err := tx.insert.Exec(m.Topic, int64(w.entry.offset), w.entry.epoch, m.Time.UnixNano(), m.Event, m.Except, sender, string(m.Data), repeat)
	return err
}

// headWrite is a log whose oldest messages are not kept any more.
type headWrite struct {
	head logHead

	// expired, unless zero: messages of before are not kept, whatever the
	// head says. It does not know the age of what is on the disk only.
	expired time.Time
}

func (w headWrite) size() int { return writeOverhead }

func (w headWrite) apply(tx *diskTx) error {
	tx.heads[w.head.topic] = w.head
	if w.expired.IsZero() {
		return nil
	}
	_, err := tx.Exec("DELETE FROM _topicsMessages WHERE topic = ? AND time <= ?", w.head.topic, w.expired.UnixNano())
	return err
}

// logEnd is the end of a topic's log.
type logEnd struct{ topic string }

func (w logEnd) size() int { return writeOverhead }

func (w logEnd) apply(tx *diskTx) error {
	delete(tx.heads, w.topic)
	if _, err := tx.Exec("DELETE FROM _topicsMessages WHERE topic = ?", w.topic); err != nil {
		return err
	}
	_, err := tx.Exec("DELETE FROM _topicsLogs WHERE topic = ?", w.topic)
	return err
}

// membersEnd is the end of the members of the topics that have the shape of a
// pattern, some parameters of which are known.
type membersEnd struct {
	glob     string // of GLOB: a * for each other parameter
	segments int
	more     bool // a rest follows
}

func (w membersEnd) size() int { return writeOverhead }

func (w membersEnd) apply(tx *diskTx) error {
	compare := "="
	if w.more {
		compare = ">="
	}
	_, err := tx.Exec("DELETE FROM _topicsMembers WHERE topic GLOB ? AND length(topic) - length(replace(topic, '/', '')) "+compare+" ?", w.glob, w.segments-1)
	return err
}

// positionWrite is a subscriber's position.
type positionWrite struct{ savedPosition }

type savedPosition struct {
	id      string
	topic   string
	owner   owner
	epoch   string
	offset  uint64
	expires time.Time
}

func (w *positionWrite) size() int { return writeOverhead }

func (w *positionWrite) apply(tx *diskTx) error {
	_, err := tx.Exec("INSERT OR REPLACE INTO _topicsPositions (id, topic, owner, epoch, position, expires) VALUES (?, ?, ?, ?, ?, ?)",
		w.id, w.topic, string(w.owner), w.epoch, int64(w.offset), w.expires.UnixNano())
	return err
}

// positionEnd is a position that is not kept any more.
type positionEnd struct{ id string }

func (w positionEnd) size() int { return writeOverhead }

func (w positionEnd) apply(tx *diskTx) error {
	_, err := tx.Exec("DELETE FROM _topicsPositions WHERE id = ?", w.id)
	return err
}

// memberWrite is a member, or its end.
type memberWrite struct {
	topic string
	key   memberKey
	state []byte
	since time.Time
	gone  bool
}

func (w *memberWrite) size() int { return len(w.state) + writeOverhead }

func (w *memberWrite) apply(tx *diskTx) error {
	tx.alive = true
	if w.gone {
		_, err := tx.Exec("DELETE FROM _topicsMembers WHERE topic = ? AND collection = ? AND id = ?", w.topic, w.key.collection, w.key.id)
		return err
	}
	_, err := tx.Exec("INSERT OR REPLACE INTO _topicsMembers (topic, collection, id, run, state, since) VALUES (?, ?, ?, ?, ?, ?)",
		w.topic, w.key.collection, w.key.id, tx.run, string(w.state), w.since.UnixNano())
	return err
}

// epochWrite is an epoch that begins.
type epochWrite struct{ savedEpoch }

func (w epochWrite) size() int { return writeOverhead }

func (w epochWrite) apply(tx *diskTx) error {
	_, err := tx.Exec("INSERT OR REPLACE INTO _topicsEpochs (name, segment) VALUES (?, ?)", w.name, w.segment)
	return err
}

// membersAlive says that there are members.
type membersAlive struct{}

func (membersAlive) size() int { return writeOverhead }

func (membersAlive) apply(tx *diskTx) error {
	tx.alive = true
	return nil
}

// oldMembersEnd is the end of the members that an earlier process has left.
type oldMembersEnd struct{}

func (oldMembersEnd) size() int { return writeOverhead }

func (oldMembersEnd) apply(tx *diskTx) error {
	_, err := tx.Exec("DELETE FROM _topicsMembers WHERE run <> ?", tx.run)
	return err
}

// writeOverhead is what a write takes besides its texts, generously.
const writeOverhead = 256

// finish writes what is the same for many writes.
func (tx *diskTx) finish() error {
	if tx.alive {
		if err := tx.setState("alive", strconv.FormatInt(time.Now().UnixNano(), 10)); err != nil {
			return err
		}
	}
	for topic, head := range tx.heads {
		if _, err := tx.Exec("DELETE FROM _topicsMessages WHERE topic = ? AND position < ?", topic, int64(head.first)); err != nil {
			return err
		}
		_, err := tx.Exec("INSERT OR REPLACE INTO _topicsLogs (topic, epoch, begun, last, first, kept, newest, owner) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
			topic, head.epoch, head.begun, int64(head.last), int64(head.first), head.kept, head.newest.UnixNano(), string(head.owner))
		if err != nil {
			return err
		}
	}
	return nil
}

func (tx *diskTx) setState(id, value string) error {
	_, err := tx.Exec("INSERT OR REPLACE INTO _topicsState (id, value) VALUES (?, ?)", id, value)
	return err
}
