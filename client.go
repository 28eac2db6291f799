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
	guest    owner // whom the connection counts for without an account
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

	mu      sync.Mutex
	queue   *[]frame  // borrowed from frameSlices, nil if empty
	first   int       // in the queue: those before it were taken
	headOut bool      // the first is in the channel, or frames are being written
	handed  time.Time // when the first was put into the channel
	topics  load      // messages of topics, notices of ours
	records load      // what PocketBase and Go code send
	closed  bool

	lastEvent atomic.Pointer[eventLine] // of a record event: the next often has the same

	// held back until a decision, over all subscriptions
	heldMessages int
	heldBytes    int

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
	recordBytes  int
	writeTimeout time.Duration
	heartbeat    time.Duration // -1 for none
}

// recordBytes is how many bytes of RecordQueueBytes there are for each record
// event, so that their number is bounded too.
const recordBytes = 256

// load is what waits for a client or is being written to it.
type load struct{ messages, bytes int }

// fits reports whether there is room. A single message always fits: records may
// be larger than the limit.
func (l load) fits(size, messages, bytes int) bool {
	return l.messages == 0 || l.messages < messages && l.bytes+size <= bytes
}

var _ subscriptions.Client = (*client)(nil)

func newClient(wrapped subscriptions.Client, hub *hub, grants *grants, response http.ResponseWriter, limits clientLimits, onClosed func(*client, string)) *client {
	id := wrapped.Id()

	c := &client{
		Client:   wrapped,
		id:       id,
		guest:    connectionOwner(id),
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

// Send implements [subscriptions.Client.Send] for PocketBase's record events and
// for Go code. It queues the message beside those of topics and never blocks; a
// client that has too many of them waiting is closed.
func (c *client) Send(m subscriptions.Message) {
	event := c.lastEvent.Load()
	if event == nil || event.key != m.Name {
		event = newEventLine(m.Name)
		c.lastEvent.Store(event)
	}
	if !c.enqueue(frame{event: event, data: newDataLine(m.Data), record: true}) {
		c.closeSlow()
	}
}

// tell queues a notice of ours, in the same way.
func (c *client) tell(m subscriptions.Message) {
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
	if f.isHeartbeat() && c.topics.messages+c.records.messages > 0 {
		return true // not a quiet connection
	}

	of, fits := &c.topics, false
	if f.record {
		of = &c.records
		fits = of.fits(size, max(c.limits.messages, c.limits.recordBytes/recordBytes), c.limits.recordBytes)
	} else {
		fits = of.fits(size, c.limits.messages, c.limits.bytes)
	}
	if !fits {
		return false
	}
	of.messages++
	of.bytes += size

	if c.queue == nil {
		c.queue, c.first = frameSlices.Get().(*[]frame), 0
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

// takeBytes is about how much is written without a look at what else core's
// connection handler waits for.
const takeBytes = 256 << 10

// take returns the front of the queue, whose first frame came out of the
// channel.
func (c *client) take() (*[]frame, error) {
	c.mu.Lock()
	defer c.mu.Unlock()

	if c.closed {
		return nil, errClosed
	}

	if c.first == 0 && c.topics.bytes+c.records.bytes <= takeBytes {
		frames := c.queue
		c.queue = nil
		return frames, nil
	}

	waiting := (*c.queue)[c.first:]
	n, size := 1, waiting[0].size()
	for n < len(waiting) && size+waiting[n].size() <= takeBytes {
		size += waiting[n].size()
		n++
	}
	frames := frameSlices.Get().(*[]frame)
	*frames = append(*frames, waiting[:n]...)
	clear(waiting[:n])
	c.first += n
	switch {
	case n == len(waiting):
		giveBack(c.queue)
		c.queue = nil
	case c.first > len(*c.queue)/2:
		// those who were taken make room, at a cost that each of them bears once
		rest := copy(*c.queue, (*c.queue)[c.first:])
		clear((*c.queue)[rest:])
		*c.queue, c.first = (*c.queue)[:rest], 0
	}
	return frames, nil
}

// done says that the frames were written, and hands over the next one.
func (c *client) done(frames *[]frame) {
	var topics, records load
	for _, f := range *frames {
		of := &topics
		if f.record {
			of = &records
		}
		of.messages++
		of.bytes += f.size()
	}

	c.mu.Lock()
	defer c.mu.Unlock()

	if c.closed {
		return
	}

	c.topics.messages -= topics.messages
	c.topics.bytes -= topics.bytes
	c.records.messages -= records.messages
	c.records.bytes -= records.bytes

	c.headOut = false
	if c.queue != nil {
		c.handOver((*c.queue)[c.first])
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

	return c.topics.messages < max(1, c.limits.messages/2) && c.topics.bytes < c.limits.bytes/2 && !c.closed
}

// queued is what waits for the client or is being written to it.
func (c *client) queued() (topics, records load) {
	c.mu.Lock()
	defer c.mu.Unlock()

	return c.topics, c.records
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
		close(c.channel) // nobody sends to it from now on: that takes c.mu and !c.closed
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
	c.index(nil, nil, nil)
}
