package topics

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// A client whose network is gone takes what is written for as long as the
// system's buffers last, which heartbeats never fill. So after a write the
// system is asked, a few times, whether anything was acknowledged.
//
// (A limit in the system itself, TCP_USER_TIMEOUT, would also end connections
// whose clients only have not read for a while.)

const (
	// silentChecks without any acknowledgement, a fifth of the write timeout
	// apart, mean that nobody is there: so it is found out within the timeout,
	// and not before three fifths of it.
	silentChecks   = 4
	silentFraction = 5
)

// A client that reads slowly lets a write block for longer than the timeout,
// though its bytes flow: the system takes more of it only when a third of its
// buffer, of up to some megabytes, is free. So the system is asked about that
// too while a write blocks.

// flowing is how many bytes a client has to take within the write timeout for
// its connection to be alive.
const flowing = 1 << 10

// deadPeer finds out that a connection's network is gone, and that a write
// which blocks goes on.
type deadPeer struct {
	tcp    *net.TCPConn
	period time.Duration
	found  func()
	flows  func() // nil where the connection has other streams

	armed   atomic.Bool
	writes  atomic.Bool   // a write is going on
	reached atomic.Uint64 // bytes that were acknowledged when they flowed last

	mu      sync.Mutex // not held while asking the system or calling found
	timer   *time.Timer
	silent  int
	stopped bool
}

// newDeadPeer returns nil where the system cannot be asked.
func newDeadPeer(r *http.Request, timeout time.Duration, found, flows func()) *deadPeer {
	tcp := tcpOf(r)
	if tcp == nil || !knowsAcks {
		return nil
	}
	if r.ProtoMajor != 1 {
		flows = nil
	}
	return &deadPeer{tcp: tcp, period: timeout / silentFraction, found: found, flows: flows}
}

// writing has to be called before each write.
func (d *deadPeer) writing() {
	if d == nil {
		return
	}
	d.writes.Store(true)
	d.watch()
}

// written has to be called after each flush. It costs nothing while an earlier
// one is looked after.
func (d *deadPeer) written() {
	if d == nil {
		return
	}
	d.writes.Store(false)
	d.watch()
}

func (d *deadPeer) watch() {
	if d.armed.Load() {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()

	d.silent = 0
	d.arm()
}

// arm expects d.mu to be held.
func (d *deadPeer) arm() {
	if d.stopped {
		return
	}
	d.armed.Store(true)
	if d.timer == nil {
		d.timer = time.AfterFunc(d.period, d.check)
	} else {
		d.timer.Reset(d.period)
	}
}

func (d *deadPeer) check() {
	d.mu.Lock()
	if d.stopped {
		d.mu.Unlock()
		return
	}
	d.mu.Unlock()

	d.armed.Store(false) // before the question: a write after it arms again
	a := acknowledged(d.tcp)
	if last := d.reached.Load(); a.bytes >= last+flowing {
		d.reached.Store(a.bytes)
		if d.writes.Load() && d.flows != nil {
			d.flows()
		}
	}

	d.mu.Lock()
	switch {
	case a.waits && a.since >= d.period:
		d.silent++
		d.arm()
	case a.waits || d.writes.Load():
		d.silent = 0
		d.arm()
	default:
		d.silent = 0
	}
	dead := d.silent >= silentChecks && !d.stopped
	d.mu.Unlock()

	if dead {
		d.found()
	}
}

// acks is what the system knows of a connection's acknowledgements.
type acks struct {
	waits bool          // something that was sent has none
	since time.Duration // the last one
	bytes uint64        // in all
}

// stop has to be called before the connection's handler returns.
func (d *deadPeer) stop() {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()

	d.stopped = true
	if d.timer != nil {
		d.timer.Stop()
	}
}

type connKey struct{}

// keepConns lets requests find their network connection.
func keepConns(server *http.Server) {
	if server == nil {
		return // somebody triggers OnServe without one
	}
	before := server.ConnContext
	server.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if before != nil {
			ctx = before(ctx, c)
		}
		return context.WithValue(ctx, connKey{}, c)
	}
}

// tcpOf returns the request's connection, or nil if it is of another kind.
func tcpOf(r *http.Request) *net.TCPConn {
	c, _ := r.Context().Value(connKey{}).(net.Conn)
	if secured, ok := c.(*tls.Conn); ok {
		c = secured.NetConn()
	}
	tcp, _ := c.(*net.TCPConn)
	return tcp
}
