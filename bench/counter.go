package main

import (
	"sync/atomic"
	"time"
)

// counter counts receipts and says when there are as many as expected.
type counter struct {
	n       atomic.Int64
	target  atomic.Int64
	reached atomic.Pointer[chan struct{}]
}

func (c *counter) add() {
	if c.n.Add(1) == c.target.Load() {
		if reached := c.reached.Load(); reached != nil {
			close(*reached)
		}
	}
}

// expect prepares to wait for more receipts.
func (c *counter) expect(more int64) {
	reached := make(chan struct{})
	c.reached.Store(&reached)
	c.target.Store(c.n.Load() + more)
}

// wait returns when all are there, or when nothing has come for a while.
func (c *counter) wait(patience time.Duration) {
	reached := *c.reached.Load()
	for before := int64(-1); ; {
		now := c.n.Load()
		if now == before || now >= c.target.Load() {
			return
		}
		before = now
		select {
		case <-reached:
			return
		case <-time.After(patience):
		}
	}
}
