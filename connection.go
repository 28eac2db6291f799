package topics

import (
	"errors"
	"net/http"
	"sync"
	"time"
)

// connection guards the write deadline of a client's response. PocketBase
// removes the deadline, so without it a reader that stalls blocks the
// connection handler inside of a write, where it sees neither its timers nor a
// closed channel.
type connection struct {
	timeout time.Duration

	// mu is held while setting the deadline, which does not block: it makes
	// sure that the response is not touched after its handler has returned.
	mu          sync.Mutex
	response    *http.ResponseController // nil after release
	armedAt     time.Time
	interrupted bool
}

func newConnection(w http.ResponseWriter, timeout time.Duration) *connection {
	return &connection{timeout: timeout, response: http.NewResponseController(w)}
}

// arm gives the following write the whole timeout (less a tenth, so that a
// busy connection does not set a deadline for each message).
func (c *connection) arm() error {
	c.mu.Lock()
	defer c.mu.Unlock()

	if c.interrupted || c.response == nil {
		return errClosed
	}

	now := time.Now()
	if now.Sub(c.armedAt) < c.timeout/10 {
		return nil
	}
	c.armedAt = now

	return c.setDeadline(now.Add(c.timeout))
}

// interrupt ends a write that is blocked, and all later ones.
func (c *connection) interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()

	c.interrupted = true
	if c.response != nil {
		_ = c.setDeadline(time.Unix(1, 0)) // the connection is lost anyway
	}
}

// release must be called before the connection's handler returns.
func (c *connection) release() {
	c.mu.Lock()
	defer c.mu.Unlock()

	c.response = nil
}

func (c *connection) setDeadline(t time.Time) error {
	err := c.response.SetWriteDeadline(t)
	if errors.Is(err, http.ErrNotSupported) {
		return nil // httptest recorders and the like, as core does it
	}
	return err
}
