package topics

import (
	"context"
	"database/sql"
	"errors"
	"maps"
	"sync"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/security"
)

const (
	// diskBacklog bounds what waits to be written.
	diskBacklog = 100_000

	// diskBatch is how much one commit has at most, so that PocketBase's own
	// writes to the database (its logs) get their turn.
	diskBatch = 2000
)

// disk keeps the histories across restarts. Its goroutine writes what has
// piled up since the last commit in one transaction; nobody waits for it.
//
// After an unclean stop, or when something could not be written, all logs
// start a new epoch: what was not committed is missing.
type disk struct {
	preparing sync.Mutex // its holder asks the database

	mu     sync.Mutex
	ready  bool
	clean  bool // the stop before this start was clean
	closed bool
	broken bool // something was not written

	overflown bool // so much was pending that a write was left out
	pending   []diskWrite

	// how many writes were added, and how many of them are done
	added uint64
	done  uint64
	more  *sync.Cond // of done

	forgotten map[string]uint64 // topic -> added, while its end may be pending

	wake    chan struct{}
	stop    chan struct{}
	running sync.WaitGroup

	run string // marks the members of this process
}

// diskWrite is one of: a message, with the first position that is kept; a
// topic's end; a topic's first position; a subscriber's position; the end of
// positions that have expired by then; a member; that members
// are there; the end of the members that an earlier process has left.
type diskWrite struct {
	entry    *entry
	topic    string
	forget   bool
	first    uint64
	position *savedPosition
	expire   time.Time

	member        *savedMember
	alive         bool
	forgetMembers bool
}

type savedPosition struct {
	id      string
	epoch   string
	offset  uint64
	expires time.Time
}

func newDisk() *disk {
	d := &disk{wake: make(chan struct{}, 1), stop: make(chan struct{}), forgotten: map[string]uint64{}, run: security.RandomString(10)}
	d.more = sync.NewCond(&d.mu)
	return d
}

// prepare makes the tables and starts the writer, unless that was done before.
// Until then there is no disk.
func (d *disk) prepare(app core.App) (left leftBehind, err error) {
	d.preparing.Lock()
	defer d.preparing.Unlock()

	d.mu.Lock()
	ready, closed := d.ready, d.closed
	d.mu.Unlock()
	if closed {
		return left, ErrClosed
	}

	builder, ok := app.AuxNonconcurrentDB().(*dbx.DB)
	if !ok {
		return left, errors.New("topics: the history cannot be opened inside a transaction of the auxiliary database")
	}
	db := builder.DB()
	if ready {
		return readLeftBehind(db)
	}
	clean, err := openTables(db)
	if err != nil {
		return left, err
	}
	if left, err = readLeftBehind(db); err != nil {
		return left, err
	}

	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return left, ErrClosed
	}
	d.clean, d.ready = clean, true
	d.running.Go(func() { d.work(app, db) })
	return left, nil
}

func (d *disk) write(e *entry, first uint64) {
	d.add(diskWrite{entry: e, topic: e.message.Topic, first: first})
}
func (d *disk) pruned(topic string, first uint64) { d.add(diskWrite{topic: topic, first: first}) }
func (d *disk) forget(topic string)               { d.add(diskWrite{topic: topic, forget: true}) }
func (d *disk) save(p savedPosition)              { d.add(diskWrite{position: &p}) }

// add does not block: a topic's lock may be held.
func (d *disk) add(w diskWrite) {
	d.mu.Lock()
	if !d.ready || d.closed || len(d.pending) >= diskBacklog {
		ofHistory := w.position == nil && w.member == nil
		d.broken = d.broken || d.ready && ofHistory
		d.overflown = d.overflown || len(d.pending) >= diskBacklog && ofHistory
		d.mu.Unlock()
		return
	}
	d.pending = append(d.pending, w)
	d.added++
	if w.forget {
		d.forgotten[w.topic] = d.added
	}
	d.mu.Unlock()

	select {
	case d.wake <- struct{}{}:
	default:
	}
}

func (d *disk) work(app core.App, db *sql.DB) {
	for {
		select {
		case <-d.wake:
		case <-d.stop:
			d.flush(app, db)
			return
		}
		d.flush(app, db)
	}
}

// flush writes all that is pending.
func (d *disk) flush(app core.App, db *sql.DB) {
	for {
		d.mu.Lock()
		batch := d.pending[:min(len(d.pending), diskBatch)]
		d.pending = d.pending[len(batch):]
		if len(batch) == 0 {
			d.pending = nil
			d.mu.Unlock()
			return
		}
		d.mu.Unlock()

		err := commit(db, batch, d.run)

		d.mu.Lock()
		if d.overflown && err == nil {
			err = errors.New("too much was waiting to be written")
		}
		d.overflown = false
		d.broken = d.broken || err != nil
		d.done += uint64(len(batch))
		maps.DeleteFunc(d.forgotten, func(_ string, at uint64) bool { return at <= d.done })
		d.more.Broadcast()
		d.mu.Unlock()

		if err != nil {
			app.Logger().Error(
				"Failed to write the history of topics: after the next restart, clients are told of a gap",
				"error", err.Error(),
			)
		}
	}
}

// settle waits until a topic's end, if it was added, is committed. It reports
// false if that takes too long.
func (d *disk) settle(topic string) bool {
	d.mu.Lock()
	until := d.forgotten[topic]
	d.mu.Unlock()

	return d.wait(until)
}

// commit saves a position and waits, for a while, until it is committed.
func (d *disk) commit(p savedPosition) {
	d.save(p)

	d.mu.Lock()
	until := d.added
	d.mu.Unlock()

	d.wait(until)
}

// diskPatience is how long somebody waits for the disk. A backup of PocketBase
// keeps everybody from writing while it runs.
const diskPatience = time.Second

var errBusy = errors.New("topics: the database is busy")

// wait reports whether so many writes are done.
func (d *disk) wait(until uint64) bool {
	d.mu.Lock()
	done := d.done >= until
	d.mu.Unlock()
	if done {
		return true
	}

	expired := false
	timer := time.AfterFunc(diskPatience, func() {
		d.mu.Lock()
		expired = true
		d.more.Broadcast()
		d.mu.Unlock()
	})
	defer timer.Stop()

	d.mu.Lock()
	defer d.mu.Unlock()

	for d.ready && d.done < until && !d.closed && !expired {
		d.more.Wait()
	}
	return d.done >= until
}

func (d *disk) isReady() bool {
	d.mu.Lock()
	defer d.mu.Unlock()

	return d.ready && !d.closed
}

// load reads a topic's log, or makes a new one.
func (d *disk) load(app core.App, topic string) (*topicLog, error) {
	if !d.isReady() {
		return newTopicLog(gapEvicted), nil
	}
	if !d.settle(topic) {
		return nil, errBusy
	}

	db, ok := app.AuxConcurrentDB().(*dbx.DB)
	if !ok {
		return nil, errors.New("topics: the history cannot be read inside a transaction of the auxiliary database")
	}
	ctx, cancel := context.WithTimeout(context.Background(), decisionTimeout)
	defer cancel()

	d.mu.Lock()
	l := newTopicLog(gapEvicted)
	if !d.clean {
		l.ended = gapEpoch
	}
	d.mu.Unlock()

	var known topicLog
	err := db.DB().QueryRowContext(ctx, "SELECT epoch, last FROM _topicsLogs WHERE topic = ?", topic).Scan(&known.epoch, &known.last)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, err
	}
	isKnown := err == nil

	rows, err := db.DB().QueryContext(ctx, "SELECT position, epoch, time, event, leftOut, sender, data FROM _topicsMessages WHERE topic = ? ORDER BY position", topic)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		e, err := readEntry(rows, topic)
		if err != nil {
			return nil, err
		}
		if e.offset != l.last+1 {
			l.entries, l.bytes = nil, 0 // a hole: what is older is not a history
		}
		l.entries = append(l.entries, e)
		l.bytes += e.size()
		l.last = e.offset
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}

	d.mu.Lock()
	broken := d.broken // a topic's end may not have been written
	d.mu.Unlock()

	// there is a state only of the last stop, and only if that was clean
	if isKnown && known.last >= l.last && !broken {
		if known.last > l.last {
			l.entries, l.bytes = nil, 0 // all have expired
		}
		l.epoch, l.last = known.epoch, known.last
	}
	return l, nil
}

// position reads a subscriber's position.
func (d *disk) position(app core.App, id string) (p savedPosition, ok bool, err error) {
	if !d.isReady() {
		return p, false, nil
	}
	db, isPlain := app.AuxConcurrentDB().(*dbx.DB)
	if !isPlain {
		return p, false, errors.New("topics: positions cannot be read inside a transaction of the auxiliary database")
	}
	var expires int64
	err = db.DB().QueryRow("SELECT epoch, position, expires FROM _topicsPositions WHERE id = ?", id).Scan(&p.epoch, &p.offset, &expires)
	if errors.Is(err, sql.ErrNoRows) {
		return p, false, nil
	}
	p.id, p.expires = id, time.Unix(0, expires)
	return p, err == nil && time.Now().Before(p.expires), err
}

// close writes what is pending, and the state of all logs: the next start
// goes on where this one ends.
func (d *disk) close(app core.App, logs map[string]*topicLog, positions []savedPosition) error {
	d.mu.Lock()
	ready := d.ready && !d.closed
	d.closed = true
	d.more.Broadcast()
	d.mu.Unlock()
	if !ready {
		return nil
	}
	close(d.stop)
	d.running.Wait()

	d.mu.Lock()
	broken := d.broken
	d.mu.Unlock()
	if broken {
		return nil // the next start makes new epochs
	}

	db, ok := app.AuxNonconcurrentDB().(*dbx.DB)
	if !ok {
		return errors.New("topics: the history cannot be closed inside a transaction of the auxiliary database")
	}
	batch := make([]diskWrite, len(positions))
	for i := range positions {
		batch[i].position = &positions[i]
	}
	if err := commit(db.DB(), batch, d.run); err != nil {
		return err
	}
	return db.Transactional(func(tx *dbx.Tx) error {
		for topic, l := range logs {
			_, err := tx.NewQuery("INSERT OR REPLACE INTO _topicsLogs VALUES ({:topic}, {:epoch}, {:last})").
				Bind(dbx.Params{"topic": topic, "epoch": l.epoch, "last": int64(l.last)}).Execute()
			if err != nil {
				return err
			}
		}
		_, err := tx.NewQuery("INSERT OR REPLACE INTO _topicsState VALUES ('stop', 'clean')").Execute()
		return err
	})
}
