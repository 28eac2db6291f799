package topics

import (
	"context"
	"math"
	"sync/atomic"
)

// gate counts the calls that are inside, so that whoever closes it can refuse
// new ones and wait for those. No lock is held while a call is inside.
type gate struct {
	inside atomic.Int64  // negative once the gate is closed
	empty  chan struct{} // set by close; closed when nobody is inside
}

// enter reports false if the gate is closed. Otherwise the caller must leave.
func (g *gate) enter() bool {
	for {
		n := g.inside.Load()
		if n < 0 {
			return false
		}
		if g.inside.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// leave reports whether the gate is closed and nobody is inside any longer.
func (g *gate) leave() (last bool) {
	last = g.inside.Add(-1) == math.MinInt64
	if last {
		close(g.empty)
	}
	return last
}

// close refuses new calls, and reports whether nobody is inside. It must be
// called once.
func (g *gate) close() (empty bool) {
	g.empty = make(chan struct{})
	empty = g.inside.Add(math.MinInt64) == math.MinInt64
	if empty {
		close(g.empty)
	}
	return empty
}

// wait waits until ctx is done for the calls inside of a closed gate, and
// reports whether all have left.
func (g *gate) wait(ctx context.Context) bool {
	select {
	case <-g.empty:
		return true
	case <-ctx.Done():
		return false
	}
}
