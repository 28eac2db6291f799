package topics

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/security"
)

const (
	// diskBacklog bounds the writes of each lane that wait.
	diskBacklog = 100_000

	// diskBatch and diskBatchTime bound one commit, so that what waits is on the
	// disk soon however busy the machine is, and PocketBase's own writes to the
	// database (its logs) get their turn.
	diskBatch     = 2000
	diskBatchTime = 100 * time.Millisecond

	// diskStates bounds the positions and members of one commit.
	diskStates = 5000

	// diskPatience is how long a request waits for the disk, for all that it
	// needs of it. A backup of PocketBase keeps everybody from writing while it
	// runs.
	diskPatience = time.Second

	// diskReadTime bounds one read.
	diskReadTime = 5 * time.Second
)

var (
	errNotReady   = errors.New("topics: the disk is not open")
	errSuperseded = errors.New("topics: another process has opened the histories of this data directory; this one does not write them any longer")
	errTriedAgain = errors.New("topics: the database cannot be written at this moment")
	errBacklog    = errors.New("topics: too much was waiting to be written")
)

// disk keeps histories, positions and members across restarts. Its goroutine
// writes what has piled up since the last commit in one transaction; nobody
// waits for it, except a request for a short while.
//
// After an unclean stop, or when something could not be written, all logs
// start a new epoch: what was not committed is missing.
type disk struct {
	backlogBytes int // of messages
	warn         func(app core.App, err error)
	guard        *guard

	preparing sync.Mutex // its holder asks the database

	mu         sync.Mutex
	ready      bool
	closed     bool
	broken     bool // some message was not written
	superseded bool
	overflown  bool // since the last commit

	messages diskLane      // and the ends of logs
	states   diskLane      // positions and members, and the ends of those
	bytes    int           // of messages
	behind   map[owner]int // the same, by sender
	more     *sync.Cond

	// the newest pending write of a position or member, which a newer one
	// replaces. They are indexes of states.pending.
	latest map[string]int

	wake    chan struct{}
	stop    chan struct{}
	running chan struct{} // closed when the goroutine has ended
	failing time.Duration // how long to wait before the next attempt

	run    string // marks what this process writes
	commit func(db *sql.DB, states, messages []diskWrite) (applied int, err error)
}

// diskLane is writes that are applied in their order. The short lane goes
// first, so that members and positions never wait behind many messages.
type diskLane struct {
	pending []diskWrite
	times   []time.Time // of messages: when each of them was added

	// how many writes were added, and how many of them are done
	added, done uint64
}

func newDisk(backlogBytes int, warn func(core.App, error)) *disk {
	d := &disk{
		backlogBytes: backlogBytes,
		warn:         warn,
		latest:       map[string]int{},
		behind:       map[owner]int{},
		wake:         make(chan struct{}, 1),
		stop:         make(chan struct{}),
		run:          security.RandomString(15),
	}
	d.more = sync.NewCond(&d.mu)
	d.commit = func(db *sql.DB, states, messages []diskWrite) (int, error) {
		return commit(db, states, messages, d.run)
	}
	return d
}

// prepare makes the tables and starts the writer, unless that was done before.
// Until then there is no disk.
func (d *disk) prepare(app core.App, maxPositions int) (left leftBehind, err error) {
	d.preparing.Lock()
	defer d.preparing.Unlock()

	d.mu.Lock()
	ready, closed := d.ready, d.closed
	d.mu.Unlock()
	switch {
	case closed:
		return left, ErrClosed
	case ready:
		return left, nil
	}

	builder, ok := app.AuxNonconcurrentDB().(*dbx.DB)
	if !ok {
		return left, errors.New("topics: the histories cannot be opened inside a transaction of the auxiliary database")
	}
	db := builder.DB()
	if left, err = openTables(db, d.run, maxPositions); err != nil {
		return left, err
	}

	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return left, ErrClosed
	}
	d.ready = true
	d.running = make(chan struct{})
	go d.work(app, db)
	left.opened = true
	return left, nil
}

// addMessage takes a write of messages or of the end of a log. It does not
// block: a topic's lock may be held. It returns the write's number.
func (d *disk) addMessage(w diskWrite) uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()

	if !d.accepts() {
		return 0
	}
	lane := &d.messages
	if size := w.size(); len(lane.pending) >= diskBacklog || d.bytes+size > d.backlogBytes && len(lane.pending) > 0 {
		if _, isEnd := w.(logEnd); !isEnd { // an end has to be written, and is small
			d.broken, d.overflown = true, true
			return 0
		}
	}
	d.count(w, 1)
	return d.push(lane, w)
}

// count adds a write to what waits, or takes it off. d.mu is held.
func (d *disk) count(w diskWrite, times int) {
	size := times * w.size()
	d.bytes += size
	if m, ok := w.(messageWrite); ok && m.entry.message.owner != "" {
		o := m.entry.message.owner
		if d.behind[o] += size; d.behind[o] <= 0 {
			delete(d.behind, o)
		}
	}
}

// backlogShare is the part of the backlog that one sender may fill, as a divisor.
const backlogShare = 4

// isBehind reports whether too much of a sender waits to be written.
func (d *disk) isBehind(o owner) bool {
	d.mu.Lock()
	defer d.mu.Unlock()

	return d.behind[o] > d.backlogBytes/backlogShare
}

// addState takes a write about positions or members. A pending one of the same
// key is replaced.
func (d *disk) addState(key string, w diskWrite) uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()

	if !d.accepts() {
		return 0
	}
	lane := &d.states
	if at, ok := d.latest[key]; ok && key != "" {
		lane.pending[at] = w
		return lane.added
	}
	if len(lane.pending) >= diskBacklog {
		d.overflown = true
		return 0
	}
	if key != "" {
		d.latest[key] = len(lane.pending)
	} else {
		clear(d.latest) // what comes later must not move before it
	}
	return d.push(lane, w)
}

// accepts expects d.mu to be held.
func (d *disk) accepts() bool { return d.ready && !d.closed && !d.superseded }

// push expects d.mu to be held.
func (d *disk) push(lane *diskLane, w diskWrite) uint64 {
	lane.pending = append(lane.pending, w)
	if lane == &d.messages {
		lane.times = append(lane.times, time.Now())
	}
	lane.added++
	select {
	case d.wake <- struct{}{}:
	default:
	}
	return lane.added
}

func (d *disk) work(app core.App, db *sql.DB) {
	defer close(d.running)
	for {
		select {
		case <-d.wake:
			for tryAgain := true; tryAgain; {
				tryAgain = !d.flushSafely(app, db) && d.pause()
			}
		case <-d.stop:
			d.flushSafely(app, db)
			return
		}
	}
}

// pause waits before what has failed is tried again. It reports false at the
// end.
func (d *disk) pause() bool {
	d.failing = min(max(2*d.failing, 100*time.Millisecond), 10*time.Second)
	timer := time.NewTimer(d.failing)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-d.stop:
		return false
	}
}

// flushSafely gives up what is pending where writing it has panicked. It reports
// false for what has to be tried again.
func (d *disk) flushSafely(app core.App, db *sql.DB) (done bool) {
	if d.guard.run("writing the histories", func() { done = d.flush(app, db) }) == nil {
		if done {
			d.failing = 0
		}
		return done
	}
	d.mu.Lock()
	defer d.mu.Unlock()

	d.broken = true
	for _, lane := range []*diskLane{&d.states, &d.messages} {
		lane.pending, lane.times, lane.done = nil, nil, lane.added
	}
	d.bytes = 0
	clear(d.behind)
	clear(d.latest)
	d.more.Broadcast()
	return true
}

// flush writes all that is pending. It reports false where the database could
// not be written at this moment: then all of it still waits.
func (d *disk) flush(app core.App, db *sql.DB) bool {
	for {
		d.mu.Lock()
		states, messages := d.states.pending, d.messages.pending
		states = states[:min(len(states), diskStates)]
		clear(d.latest)
		if d.states.pending = d.states.pending[len(states):]; len(d.states.pending) == 0 {
			d.states.pending = nil
		}
		messages = messages[:min(len(messages), diskBatch)]
		superseded, commit := d.superseded, d.commit
		d.mu.Unlock()
		if len(states)+len(messages) == 0 {
			return true
		}

		err := errSuperseded
		applied := len(messages)
		if !superseded {
			applied, err = commit(db, states, messages)
		}

		if isPassing(err) {
			d.mu.Lock()
			d.states.pending = slices.Concat(states, d.states.pending)
			clear(d.latest)
			d.mu.Unlock()
			d.warn(app, fmt.Errorf("%w: %w", errTriedAgain, err))
			return false
		}

		d.mu.Lock()
		if d.overflown && err == nil {
			err = errBacklog
		}
		d.overflown = false
		d.superseded = d.superseded || errors.Is(err, errSuperseded)
		d.broken = d.broken || err != nil && !errors.Is(err, errBacklog)
		for _, w := range messages[:applied] {
			d.count(w, -1)
		}
		d.messages.pending = d.messages.pending[applied:]
		d.messages.times = d.messages.times[applied:]
		if len(d.messages.pending) == 0 {
			d.messages.pending, d.messages.times = nil, nil
		}
		d.messages.done += uint64(applied)
		d.states.done += uint64(len(states))
		d.more.Broadcast()
		d.mu.Unlock()

		if err != nil {
			d.warn(app, err)
		}
	}
}

func (d *disk) isReady() bool {
	d.mu.Lock()
	defer d.mu.Unlock()

	return d.accepts()
}

// isSaved reports whether the write with that number is done with, or there is
// nothing to wait for.
func (d *disk) isSaved(number uint64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()

	return d.messages.done >= number
}

// waitForStates waits until the writes of states up to that number are
// committed, but no longer than ctx.
func (d *disk) waitForStates(ctx context.Context, number uint64) {
	stop := context.AfterFunc(ctx, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.more.Broadcast()
	})
	defer stop()

	d.mu.Lock()
	defer d.mu.Unlock()
	for d.accepts() && d.states.done < number && ctx.Err() == nil {
		d.more.Wait()
	}
}

// backlog is how many messages wait to be written, and for how long the first
// of them has.
func (d *disk) backlog() (messages int, lag time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()

	if n := len(d.messages.pending); n > 0 {
		return n, time.Since(d.messages.times[0])
	}
	return 0, 0
}

// close writes what is pending, and that the stop was clean: the next start
// goes on where this one ends. It waits no longer than ctx.
func (d *disk) close(ctx context.Context, app core.App, heads []logHead, positions []savedPosition) error {
	d.mu.Lock()
	open := d.accepts()
	for _, p := range positions {
		if open {
			d.push(&d.states, &positionWrite{p})
		}
	}
	ready := d.ready && !d.closed
	d.closed = true
	d.more.Broadcast()
	d.mu.Unlock()
	if !ready {
		return nil
	}

	close(d.stop)
	select {
	case <-d.running:
	case <-ctx.Done():
		return errors.New("topics: the histories could not be written in time; the next start begins new epochs")
	}

	d.mu.Lock()
	unclean := d.broken || d.superseded || len(d.messages.pending)+len(d.states.pending) > 0
	d.mu.Unlock()
	if unclean {
		return nil // the next start makes new epochs
	}
	db, ok := app.AuxNonconcurrentDB().(*dbx.DB)
	if !ok {
		return errors.New("topics: the histories cannot be closed inside a transaction of the auxiliary database")
	}
	return markClean(ctx, db.DB(), d.run, heads)
}
