package topics

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// clockTTL is how long a decision counts whose rule asks for the time.
	clockTTL = 100 * time.Millisecond

	// clockTick is how often ended decisions are looked for, and clockPause
	// how long one is left alone where nobody publishes: together well below
	// the second in which a subscriber is told.
	clockTick  = 250 * time.Millisecond
	clockPause = 500 * time.Millisecond

	// clockTurns is how many decisions of rules that ask for the time are made
	// for one owner in a tick, where nobody publishes, and clockLooks how many
	// are looked at. So an account with up to 24 such topics is told within a
	// second that it has lost one.
	clockTurns = 8
	clockLooks = 64

	// clockRest is how many times as long as these decisions took nobody makes
	// others: they take a quarter of one CPU at most.
	clockRest = 3
)

// clock decides where nobody publishes: decisions that have ended by themselves
// are made again, so that a subscriber who has lost a topic is told. Messages do
// not depend on it. A message is sent by a decision that counts at that moment.
//
// One account with thousands of topics whose rules ask for the time must not
// take the CPU, nor the turns of others.
type clock struct {
	mu       sync.Mutex
	incoming []*grant

	// released grants that may still be in a lane
	released atomic.Int64

	// the rest belongs to the goroutine
	lanes map[owner]*clockLane
	ring  []*clockLane // the next one whose turn it is comes first
}

// clockLane has the grants of one owner whose rules ask for the time, the one
// that was decided or looked at last at the end.
type clockLane struct {
	owner  owner
	grants []*grant

	// left in this tick
	turns, looks int
}

func newClock() *clock { return &clock{lanes: map[owner]*clockLane{}} }

// add takes a grant whose rule asks for the time.
func (c *clock) add(g *grant) {
	if g.timed.Swap(true) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()

	c.incoming = append(c.incoming, g)
}

func (gs *grants) runClock() {
	tick := time.NewTicker(clockTick)
	defer tick.Stop()

	for {
		select {
		case <-gs.stop:
			return
		case now := <-tick.C:
			if now.UnixNano() >= gs.nextEnd.Load() {
				gs.markDirty(gs.ended(now)...)
			}
			gs.rest(clockRest * gs.clock.decide(gs))
		}
	}
}

// rest waits up to a second, but not longer than for close.
func (gs *grants) rest(d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(min(d, time.Second))
	defer timer.Stop()
	select {
	case <-gs.stop:
	case <-timer.C:
	}
}

// ended returns the grants that have ended for another reason than the clock:
// with the token.
func (gs *grants) ended(now time.Time) (list []*grant) {
	gs.nextEnd.Store(forever) // and then that of any decision from now on

	gs.mu.Lock()
	defer gs.mu.Unlock()

	next := int64(forever)
	for _, g := range gs.all {
		if g.clock.Load() {
			continue
		}
		until := g.until.Load()
		next = min(next, until)
		past := now.UnixNano() >= until && now.UnixNano()-g.decided.Load() >= int64(clockPause)
		if past && len(g.holders) > 0 && !g.queued.Load() {
			list = append(list, g)
		}
	}
	gs.endsAt(next)
	return list
}

// endsAt says that a decision ends then.
func (gs *grants) endsAt(until int64) {
	for next := gs.nextEnd.Load(); until < next; next = gs.nextEnd.Load() {
		if gs.nextEnd.CompareAndSwap(next, until) {
			return
		}
	}
}

// decide makes the decisions of a tick, and returns how long they took.
func (c *clock) decide(gs *grants) (spent time.Duration) {
	c.takeIncoming(gs)
	c.sweep()
	for _, l := range c.ring {
		l.turns, l.looks = clockTurns, min(clockLooks, len(l.grants))
	}

	for decided := true; decided; {
		decided = false
		for i, l := range c.ring {
			if spent > clockTick/clockRest || gs.halted() {
				c.ring = append(c.ring[i:], c.ring[:i]...)
				c.tidy()
				return spent
			}
			if g := l.next(time.Now()); g != nil {
				start := time.Now()
				gs.decideAgain(g)
				spent += time.Since(start)
				decided = true
			}
		}
	}
	c.tidy()
	return spent
}

// sweep takes the released grants out of the lanes, once there are so many that
// it costs little for each.
func (c *clock) sweep() {
	total := 0
	for _, l := range c.ring {
		total += len(l.grants)
	}
	if c.released.Load() < int64(max(256, total/2)) {
		return
	}
	c.released.Store(0)
	for _, l := range c.ring {
		l.grants = slices.DeleteFunc(l.grants, func(g *grant) bool { return g.released.Load() })
	}
	c.tidy()
}

func (c *clock) takeIncoming(gs *grants) {
	c.mu.Lock()
	list := c.incoming
	c.incoming = nil
	c.mu.Unlock()

	for _, g := range list {
		if g.released.Load() {
			continue
		}
		gs.mu.Lock()
		o := gs.payer(g)
		gs.mu.Unlock()

		l := c.lanes[o]
		if l == nil {
			l = &clockLane{owner: o}
			c.lanes[o] = l
			c.ring = append(c.ring, l)
		}
		l.grants = append(l.grants, g)
	}
}

// next returns a grant of the lane that is to be decided, unless it has had its
// turns. That one leaves the lane; a decision that still asks for the time
// brings it back.
func (l *clockLane) next(now time.Time) *grant {
	for l.turns > 0 && l.looks > 0 {
		l.looks--
		g := l.grants[0]
		l.grants[0] = nil
		l.grants = l.grants[1:]

		switch ended := now.UnixNano() - g.decided.Load(); {
		case g.released.Load():
		case ended < int64(clockPause) || g.queued.Load() || g.fresh(now.UnixNano()):
			l.grants = append(l.grants, g)
		default:
			l.turns--
			g.timed.Store(false)
			return g
		}
	}
	return nil
}

// tidy forgets the owners that have nothing.
func (c *clock) tidy() {
	kept := c.ring[:0]
	for _, l := range c.ring {
		if len(l.grants) > 0 {
			kept = append(kept, l)
		} else {
			delete(c.lanes, l.owner)
		}
	}
	clear(c.ring[len(kept):])
	c.ring = kept
}
