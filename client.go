package topics

import (
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pocketbase/pocketbase/tools/subscriptions"
)

// client is the realtime client of every connection. It wraps the one that
// PocketBase (or another plugin) made, which keeps the client's store, keys and
// options, and replaces its channel by a bounded queue:
//
//   - Send puts a frame into the queue and never blocks;
//   - the first waiting message is handed to core's connection handler through
//     the channel, so that every OnRealtimeMessageSend handler sees it;
//   - in that hook (see write) the connection handler, which is the only
//     writer, takes the rest of the queue and flushes once.
type client struct {
	subscriptions.Client

	id       string
	idLine   []byte
	previous atomic.Pointer[[]string] // ids of its connections before
	limits   clientLimits
	hub      *hub
	grants   *grants
	conn     *connection
	peer     *deadPeer // nil if there is no finding out
	onClosed func(*client, string)

	// channel holds at most the head of the queue
	channel chan subscriptions.Message

	mu       sync.Mutex
	queue    *[]frame  // borrowed from frameSlices, nil if empty
	headOut  bool      // the first is in the channel, or frames are being written
	handed   time.Time // when the first was put into the channel
	messages int       // in the queue and being written
	bytes    int
	closed   bool

	subsMu    sync.Mutex
	subs      map[string]*subscription
	granted   map[string]*admission // while replacing: of the new keys
	replacing bool
	known     bool // counted in hub.registered
	discarded bool

	// turn serialises the client's subscribe requests; its holder owns told
	turn chan struct{}
	told map[string]struct{} // denied keys whose notice was sent

	// how many subscriptions read from a history, and how many have a position
	behind   atomic.Int32
	resuming atomic.Int32

	dead atomic.Bool // it had stopped reading, or its network was gone

	// the rest belongs to the connection handler's goroutine
	greeted bool // PB_CONNECT was sent
	writing bool
	flushed time.Time
	shared  bool          // more than a few messages shared the last flush
	late    time.Duration // how long the last pause was too long
	pulse   *time.Timer
}

// clientKey is where a client's store keeps the client itself, so that it is
// found behind another plugin's wrapper.
const clientKey = "topicsClient"

// ownClient returns our client, which c is or wraps, or nil.
func ownClient(c subscriptions.Client) *client {
	if own, ok := c.(*client); ok {
		return own
	}
	own, _ := c.Get(clientKey).(*client)
	return own
}

type clientLimits struct {
	messages     int
	bytes        int
	writeTimeout time.Duration
	heartbeat    time.Duration // -1 for none
}

var _ subscriptions.Client = (*client)(nil)

func newClient(wrapped subscriptions.Client, hub *hub, grants *grants, response http.ResponseWriter, limits clientLimits, onClosed func(*client, string)) *client {
	id := wrapped.Id()

	c := &client{
		Client:   wrapped,
		id:       id,
		idLine:   []byte("id:" + id + "\n"),
		limits:   limits,
		hub:      hub,
		grants:   grants,
		conn:     newConnection(response, limits.writeTimeout),
		onClosed: onClosed,
		channel:  make(chan subscriptions.Message, 1),
		turn:     make(chan struct{}, 1),
	}

	wrapped.Set(clientKey, c)

	if limits.heartbeat > 0 {
		c.pulse = time.AfterFunc(limits.heartbeat, func() { c.enqueue(heartbeat) })
	}

	return c
}

// Channel implements [subscriptions.Client.Channel].
func (c *client) Channel() chan subscriptions.Message { return c.channel }

// Send queues the message. It never blocks; a client whose queue is full is
// closed.
func (c *client) Send(m subscriptions.Message) {
	if !c.enqueue(newFrame(m)) {
		c.closeSlow()
	}
}

// enqueue reports false when the queue is full. The caller then calls
// closeSlow, outside of any lock.
func (c *client) enqueue(f frame) bool {
	size := f.size()

	c.mu.Lock()
	defer c.mu.Unlock()

	if c.closed {
		return true
	}
	if f.isHeartbeat() && c.messages > 0 {
		return true // not a quiet connection
	}

	// a single message always fits: records may be larger than the limit
	if c.messages > 0 && (c.messages >= c.limits.messages || c.bytes+size > c.limits.bytes) {
		return false
	}
	c.messages++
	c.bytes += size

	if c.queue == nil {
		c.queue = frameSlices.Get().(*[]frame)
	}
	*c.queue = append(*c.queue, f)
	if !c.headOut {
		c.handOver(f)
	}

	return true
}

// handOver expects c.mu to be held and headOut to be false, which means that
// the channel is empty.
func (c *client) handOver(f frame) {
	c.headOut = true
	c.handed = time.Now()
	c.channel <- f.message()
}

// errClosed ends core's connection handler.
var errClosed = errors.New("topics: the realtime client is closed")

// take returns the queue, whose first frame came out of the channel.
func (c *client) take() (*[]frame, error) {
	c.mu.Lock()
	defer c.mu.Unlock()

	if c.closed {
		return nil, errClosed
	}

	frames := c.queue
	c.queue = nil
	return frames, nil
}

// done says that the frames were written, and hands over the next one.
func (c *client) done(frames *[]frame) {
	size := 0
	for _, f := range *frames {
		size += f.size()
	}

	c.mu.Lock()
	defer c.mu.Unlock()

	if c.closed {
		return
	}

	c.messages -= len(*frames)
	c.bytes -= size

	c.headOut = false
	if c.queue != nil {
		c.handOver((*c.queue)[0])
	}
}

// frameSlices are the memory of queues, so that idle connections hold none.
var frameSlices = sync.Pool{New: func() any {
	frames := make([]frame, 0, 16)
	return &frames
}}

// giveBack expects that nobody else has the frames.
func giveBack(frames *[]frame) {
	if cap(*frames) > 256 {
		return // not what queues usually need
	}
	clear(*frames)
	*frames = (*frames)[:0]
	frameSlices.Put(frames)
}

// hasRoom reports whether more of a history may be queued: half of the queue is
// for what is live.
func (c *client) hasRoom() bool {
	c.mu.Lock()
	defer c.mu.Unlock()

	return c.messages < max(1, c.limits.messages/2) && c.bytes < c.limits.bytes/2 && !c.closed
}

// queued is what waits for the client or is being written to it.
func (c *client) queued() (messages, bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()

	return c.messages, c.bytes
}

// closeSlow closes a client whose queue was full.
func (c *client) closeSlow() {
	if c.close() {
		c.onClosed(c, codeSlowConsumer)
	}
}

// closeDead closes a client that has stopped reading, or whose network is gone.
func (c *client) closeDead() {
	c.dead.Store(true)
	if c.close() {
		c.onClosed(c, codeWriteTimeout)
	}
}

// close ends the connection, also when its handler is blocked in a write. It
// reports whether it was the first to do so.
func (c *client) close() bool {
	c.mu.Lock()
	first := !c.closed
	if first {
		c.closed = true
		c.queue = nil
		close(c.channel) // nobody sends to it any more: that takes c.mu and !c.closed
	}
	c.mu.Unlock()

	if first {
		c.conn.interrupt()
	}

	return first
}

// IsDiscarded implements [subscriptions.Client.IsDiscarded].
func (c *client) IsDiscarded() bool {
	c.mu.Lock()
	defer c.mu.Unlock()

	return c.closed
}

func (c *client) markRegistered() {
	c.subsMu.Lock()
	defer c.subsMu.Unlock()

	if !c.discarded {
		c.known = true
		c.hub.registered.Add(1)
	}
}

// Discard implements [subscriptions.Client.Discard]. It is safe to call it
// multiple times.
func (c *client) Discard() {
	c.close()
	c.Client.Discard()

	if c.pulse != nil {
		c.pulse.Stop()
	}

	c.subsMu.Lock()
	defer c.subsMu.Unlock()

	if c.discarded {
		return
	}
	c.discarded = true
	if c.known {
		c.hub.registered.Add(-1)
	}
	c.index(nil, nil)
}
