package topics

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"time"
)

// connection guards the write deadline of a client's response. PocketBase
// removes the deadline, so without it a reader that stalls blocks the
// connection handler inside of a write, where it sees neither its timers nor a
// closed channel.
type connection struct {
	timeout     time.Duration
	response    *http.ResponseController
	inUse       gate // the response may not be touched after its handler has returned
	interrupted atomic.Bool

	armedAt time.Time // of the handler's goroutine
}

func newConnection(w http.ResponseWriter, timeout time.Duration) *connection {
	return &connection{timeout: timeout, response: http.NewResponseController(w)}
}

// arm gives the following write the whole timeout (less a tenth, so that a
// busy connection does not set a deadline for each message).
func (c *connection) arm() error {
	if c.interrupted.Load() {
		return errClosed
	}

	now := time.Now()
	if now.Sub(c.armedAt) < c.timeout/10 {
		return nil
	}
	c.armedAt = now

	return c.setDeadline(now.Add(c.timeout))
}

// extend gives a write that is blocked, but whose bytes flow, the whole timeout
// again.
func (c *connection) extend() {
	_ = c.setDeadline(time.Now().Add(c.timeout)) // then the old one holds
}

// interrupt ends a write that is blocked, and all later ones.
func (c *connection) interrupt() {
	c.interrupted.Store(true)
	_ = c.setDeadline(past) // the connection is lost anyway
}

// release must be called once, before the connection's handler returns.
func (c *connection) release() {
	c.inUse.close()
	c.inUse.wait(context.Background())
}

var past = time.Unix(1, 0)

func (c *connection) setDeadline(t time.Time) error {
	if !c.inUse.enter() {
		return errClosed
	}
	defer c.inUse.leave()

	err := c.response.SetWriteDeadline(t)
	if c.interrupted.Load() {
		_ = c.response.SetWriteDeadline(past) // not the later one, whichever came last
	}
	if errors.Is(err, http.ErrNotSupported) {
		return nil // httptest recorders and the like, as core does it
	}
	return err
}
