package topics

import (
	"runtime"
	"sync"
)

const (
	// heavyAfter is how many decisions in a row make a lane heavy.
	heavyAfter = 64

	// heavyShare is how many turns of light lanes one turn of a heavy lane
	// waits for.
	heavyShare = 4
)

// queue hands the grants that need a new decision to the workers: by turns
// between owners, one grant of an owner at a time, so that nobody's backlog
// delays another's.
//
// An owner with a long backlog is heavy. Heavy owners together have half of the
// CPUs at most.
type queue struct {
	mu     sync.Mutex
	more   sync.Cond
	closed bool

	incoming []*grant // not in a lane yet

	lanes        map[owner]*lane
	light, heavy ring
	heavyBusy    int
	heavyLimit   int
	turns        uint64
}

// lane has the grants of one owner. It exists while there are any, or while one
// is being decided.
type lane struct {
	owner   owner
	waiting []*grant
	turns   int // since it came
	busy    bool
}

func newQueue() *queue {
	q := &queue{lanes: map[owner]*lane{}, heavyLimit: max(1, runtime.GOMAXPROCS(0)/2)}
	q.more.L = &q.mu
	return q
}

// workers is how many grants are decided at once: more than there are CPUs, as
// a decision may wait.
func workers() int { return max(4, runtime.GOMAXPROCS(0)) }

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()

	q.closed = true
	q.more.Broadcast()
}

// put takes grants that are not in the queue yet.
func (q *queue) put(list ...*grant) {
	q.mu.Lock()
	defer q.mu.Unlock()

	q.incoming = append(q.incoming, list...)
}

func (q *queue) takeIncoming() []*grant {
	q.mu.Lock()
	defer q.mu.Unlock()

	list := q.incoming
	q.incoming = nil
	return list
}

// line puts a grant behind the others of its owner.
func (q *queue) line(o owner, g *grant) {
	q.mu.Lock()
	defer q.mu.Unlock()

	l := q.lanes[o]
	if l == nil {
		l = &lane{owner: o}
		q.lanes[o] = l
	}
	l.waiting = append(l.waiting, g)
	if !l.busy && len(l.waiting) == 1 {
		q.list(l)
	}
}

// next waits for a grant whose turn it is. It returns nil at the end. A call of
// done follows.
func (q *queue) next() (*grant, *lane) {
	q.mu.Lock()
	defer q.mu.Unlock()

	for !q.closed {
		if l := q.pick(); l != nil {
			g := l.waiting[0]
			l.waiting[0] = nil
			l.waiting = l.waiting[1:]
			l.busy = true
			l.turns++
			return g, l
		}
		q.more.Wait()
	}
	return nil, nil
}

func (q *queue) pick() *lane {
	heavy := q.heavy.len() > 0 && q.heavyBusy < q.heavyLimit
	if q.light.len() > 0 && (!heavy || q.turns%heavyShare != 0) {
		q.turns++
		return q.light.pop()
	}
	if heavy {
		q.turns++
		q.heavyBusy++
		return q.heavy.pop()
	}
	return nil
}

// isHeavy reports whether the lane that next returned is heavy. It does not
// change before done.
func (l *lane) isHeavy() bool { return l.turns > heavyAfter }

func (q *queue) done(l *lane) {
	q.mu.Lock()
	defer q.mu.Unlock()

	if l.isHeavy() {
		q.heavyBusy--
		q.more.Signal()
	}
	l.busy = false
	if len(l.waiting) == 0 {
		delete(q.lanes, l.owner)
		return
	}
	q.list(l)
}

// list expects q.mu to be held.
func (q *queue) list(l *lane) {
	if l.turns >= heavyAfter {
		q.heavy.push(l)
	} else {
		q.light.push(l)
	}
	q.more.Signal()
}

// ring is a first-in first-out list of lanes.
type ring struct {
	lanes []*lane
	first int
}

func (r *ring) len() int { return len(r.lanes) - r.first }

func (r *ring) push(l *lane) { r.lanes = append(r.lanes, l) }

func (r *ring) pop() *lane {
	l := r.lanes[r.first]
	r.lanes[r.first] = nil
	r.first++
	if r.first*2 >= len(r.lanes) {
		n := copy(r.lanes, r.lanes[r.first:])
		clear(r.lanes[n:])
		r.lanes, r.first = r.lanes[:n], 0
	}
	return l
}
