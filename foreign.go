package topics

import (
	"sync"
	"time"

	"github.com/pocketbase/pocketbase/tools/subscriptions"
	"golang.org/x/sync/errgroup"
)

const (
	// foreignChunk is how many clients of PocketBase's broker one goroutine of
	// a sweep looks at; core uses the same number (apis/realtime.go).
	foreignChunk = 150

	// foreignBacklog is how many messages may wait for a sweep.
	foreignBacklog = 4096
)

// foreignClients delivers to the clients that Go code registered in
// PocketBase's broker by itself. Their type is not ours: Send may block, and
// only they know their subscriptions. So a goroutine that runs while there is
// something to do asks each of them, and each has a forwarder of its own, so
// that one that blocks holds up nobody. Their methods are the app's code: no
// lock is held while calling them, and a panic ends nothing else.
type foreignClients struct {
	broker *subscriptions.Broker
	limits foreignLimits
	grants *grants
	quota  *quota
	onSlow func(clientID string)
	guard  *guard

	running sync.WaitGroup // all goroutines

	mu         sync.Mutex
	closed     bool
	sweeping   bool
	overflown  bool
	backlog    []foreignMessage
	forwarders map[string]*forwarder
	holds      map[string]map[string]*foreignHold // by client and key
}

type foreignLimits struct {
	messages int
	bytes    int
	timeout  time.Duration
}

type foreignMessage struct {
	topic  string
	except string
	data   []byte
}

func newForeignClients(broker *subscriptions.Broker, grants *grants, limits foreignLimits, onSlow func(clientID string)) *foreignClients {
	return &foreignClients{
		broker:     broker,
		limits:     limits,
		grants:     grants,
		onSlow:     onSlow,
		holds:      map[string]map[string]*foreignHold{},
		forwarders: map[string]*forwarder{},
	}
}

// present reports whether the broker has clients that are not ours, of which
// it has at least own. It may be wrong only in saying yes.
func (fc *foreignClients) present(own int64) bool {
	return int64(fc.broker.TotalClients()) > own
}

// queue takes a message for the next sweep. It does not block, so that the
// topic's lock may be held, which keeps the topic's order.
func (fc *foreignClients) queue(m Message, data dataLine) {
	fc.mu.Lock()
	defer fc.mu.Unlock()

	if fc.closed {
		return
	}
	if len(fc.backlog) >= foreignBacklog {
		fc.backlog = nil
		fc.overflown = true
	} else if !fc.overflown {
		fc.backlog = append(fc.backlog, foreignMessage{topic: m.Topic, except: m.Except, data: data.json()})
	}

	if !fc.sweeping {
		fc.sweeping = true
		fc.running.Go(func() {
			if fc.guard.run("clients of the app's own code", fc.sweepAll) != nil {
				fc.mu.Lock()
				fc.sweeping = false // the next message starts again
				fc.mu.Unlock()
			}
		})
	}
}

func (fc *foreignClients) sweepAll() {
	for {
		fc.mu.Lock()
		messages, overflown := fc.backlog, fc.overflown
		fc.backlog, fc.overflown = nil, false
		if fc.closed || len(messages) == 0 && !overflown {
			fc.sweeping = false
			fc.mu.Unlock()
			return
		}
		fc.mu.Unlock()

		fc.sweep(messages, overflown)
	}
}

// sweep gives the messages to every foreign client. Those that a backlog has
// left behind for good are closed, like any slow consumer.
func (fc *foreignClients) sweep(messages []foreignMessage, overflown bool) {
	var group errgroup.Group

	for _, chunk := range fc.broker.ChunkedClients(foreignChunk) {
		group.Go(func() error {
			for _, c := range chunk {
				_ = fc.guard.run("sending to a client of the app's own code", func() { fc.sweepOne(c, messages, overflown) })
			}
			return nil
		})
	}

	_ = group.Wait() // the functions return no error
}

func (fc *foreignClients) sweepOne(c subscriptions.Client, messages []foreignMessage, overflown bool) {
	if ownClient(c) != nil || c.IsDiscarded() {
		return
	}
	if overflown {
		fc.evict(c)
		return
	}
	id := c.Id()
	for _, m := range messages {
		if id == m.except {
			continue
		}
		for key := range c.Subscriptions(m.topic + "?") {
			if fc.mayReceive(c, id, key) {
				fc.send(c, subscriptions.Message{Name: key, Data: m.data})
			}
		}
	}
}

// send queues one message for one foreign client.
func (fc *foreignClients) send(c subscriptions.Client, m subscriptions.Message) {
	id := c.Id()

	fc.mu.Lock()
	defer fc.mu.Unlock()

	if fc.closed {
		return
	}

	f := fc.forwarders[id]
	if f == nil {
		f = &forwarder{id: id, client: c, done: make(chan struct{})}
		fc.forwarders[id] = f
		fc.running.Go(func() { fc.forward(f) })
	}
	if f.slow {
		return
	}

	if len(f.waiting) > 0 && (len(f.waiting) >= fc.limits.messages || f.bytes+len(m.Data) > fc.limits.bytes) {
		fc.closeSlow(f)
		return
	}
	f.waiting = append(f.waiting, m)
	f.bytes += len(m.Data)
}

// evict closes a client that a sweep has left behind.
func (fc *foreignClients) evict(c subscriptions.Client) {
	id := c.Id()

	fc.mu.Lock()
	defer fc.mu.Unlock()

	if fc.closed {
		return
	}

	f := fc.forwarders[id]
	if f == nil {
		f = &forwarder{id: id, client: c, done: make(chan struct{})}
		close(f.done)
	}
	if !f.slow {
		fc.closeSlow(f)
	}
}

// closeSlow expects fc.mu to be held. Until the client is unregistered its
// forwarder stays, so that nothing is sent to it meanwhile.
func (fc *foreignClients) closeSlow(f *forwarder) {
	f.slow, f.waiting = true, nil
	fc.forwarders[f.id] = f

	fc.running.Go(func() {
		defer func() {
			fc.mu.Lock()
			defer fc.mu.Unlock()
			delete(fc.forwarders, f.id)
		}()
		for _, step := range []func(){
			func() { f.drain(fc.limits.timeout) },
			func() { fc.broker.Unregister(f.id) },
			func() { fc.onSlow(f.id) },
		} {
			_ = fc.guard.run("closing a client of the app's own code", step) // then the others
		}
	})
}

// forwarder sends to one foreign client, for as long as it has messages. Its
// fields are guarded by foreignClients.mu.
type forwarder struct {
	id      string
	client  subscriptions.Client
	waiting []subscriptions.Message
	bytes   int
	slow    bool
	done    chan struct{} // closed when nothing is being sent any more
}

func (fc *foreignClients) forward(f *forwarder) {
	defer close(f.done)

	for {
		fc.mu.Lock()
		if fc.closed || len(f.waiting) == 0 {
			if !f.slow { // else until it is unregistered
				delete(fc.forwarders, f.id)
			}
			fc.mu.Unlock()
			return
		}
		m := f.waiting[0]
		f.waiting = f.waiting[1:]
		f.bytes -= len(m.Data)
		fc.mu.Unlock()

		_ = fc.guard.run("sending to a client of the app's own code", func() {
			if !f.client.IsDiscarded() {
				f.client.Send(m)
			}
		})
	}
}

// drain unblocks a forwarder by taking what it sends, because closing the
// client's channel while something is sent to it is a data race. A client
// whose Send blocks on something else is given up after the timeout.
func (f *forwarder) drain(timeout time.Duration) {
	expired := time.NewTimer(timeout)
	defer expired.Stop()

	channel := f.client.Channel()
	for {
		select {
		case <-f.done:
			return
		case _, open := <-channel:
			if !open {
				channel = nil
			}
		case <-expired.C:
			return
		}
	}
}

// close stops all goroutines and waits for them. A client whose methods hang
// keeps it from returning.
func (fc *foreignClients) close() {
	fc.mu.Lock()
	fc.closed = true
	stuck := make([]*forwarder, 0, len(fc.forwarders))
	for _, f := range fc.forwarders {
		stuck = append(stuck, f)
	}
	fc.mu.Unlock()

	for _, f := range stuck {
		fc.running.Go(func() {
			_ = fc.guard.run("closing a client of the app's own code", func() { f.drain(fc.limits.timeout) })
		})
	}
	fc.running.Wait()
}

// foreignHold is a subscription of a foreign client that an HTTP request made.
// A rule guards it, or without a grant PocketBase: then nothing is sent.
type foreignHold struct {
	fc     *foreignClients
	client subscriptions.Client
	key    string
	grant  *grant
	seat   *seat // nil: nobody's limit holds; guarded by foreignClients.mu
	payer  owner // without an account
}

var _ holder = (*foreignHold)(nil)

// setGrants replaces what a foreign client holds.
func (fc *foreignClients) setGrants(c subscriptions.Client, guest owner, keys []string, admitted map[string]*admission) {
	id := c.Id()
	fresh := make(map[string]*foreignHold, len(keys))
	for _, key := range keys {
		var g *grant
		if a := admitted[key]; a != nil {
			g = a.grant
		}
		fresh[key] = &foreignHold{fc: fc, client: c, key: key, grant: g, payer: guest}
		if g != nil {
			fc.grants.hold(g, fresh[key])
		}
	}

	fc.mu.Lock()
	old := fc.holds[id]
	var spare []*seat
	for key, h := range old {
		switch a := admitted[key]; {
		case h.seat == nil:
		case a != nil && a.seat == nil && a.account == h.seat.account:
			fresh[key].seat = h.seat
		default:
			spare = append(spare, h.seat)
		}
		h.seat = nil
	}
	for key, a := range admitted {
		h := fresh[key]
		if h.seat == nil {
			h.seat, a.seat = a.seat, nil
		}
		if h.seat == nil && a.account != "" {
			h.seat, spare = fc.quota.reuse(spare, a.account, id)
		}
	}
	for _, seat := range spare {
		seat.free()
	}
	if len(fresh) > 0 {
		fc.holds[id] = fresh
	} else {
		delete(fc.holds, id)
	}
	fc.mu.Unlock()

	for _, h := range old {
		if h.grant != nil {
			fc.grants.drop(h.grant, h)
		}
	}
}

// held returns the keys of a foreign client, each with the account that has a
// seat for it.
func (fc *foreignClients) held(clientID string) map[string]owner {
	fc.mu.Lock()
	defer fc.mu.Unlock()

	keys := make(map[string]owner, len(fc.holds[clientID]))
	for key, h := range fc.holds[clientID] {
		keys[key] = ""
		if h.seat != nil {
			keys[key] = h.seat.account
		}
	}
	return keys
}

// prune forgets what clients hold that are gone. Nobody tells when Go code ends
// one.
func (fc *foreignClients) prune() {
	fc.mu.Lock()
	clients := make([]subscriptions.Client, 0, len(fc.holds))
	for _, holds := range fc.holds {
		for _, h := range holds {
			clients = append(clients, h.client)
			break
		}
	}
	fc.mu.Unlock()

	for _, c := range clients {
		_ = fc.guard.run("asking a client of the app's own code", func() {
			if c.IsDiscarded() {
				fc.setGrants(c, "", nil, nil)
			}
		})
	}
}

// mayReceive asks, unless Go code subscribed the client, whether the grant
// still lets it. It runs in a sweep, which may wait for a decision.
func (fc *foreignClients) mayReceive(c subscriptions.Client, id, key string) bool {
	for try := 0; ; try++ {
		fc.mu.Lock()
		h := fc.holds[id][key]
		fc.mu.Unlock()

		switch {
		case h == nil:
			return c.HasSubscription(key) // or it was revoked just now
		case h.grant == nil:
			return false
		}
		o := fc.grants.outcomeFor(h.grant)
		if !o.moves || try == 2 {
			return o.denial == nil
		}
		fc.grants.moveHolders(h.grant) // nothing is held back for this client
	}
}

// move implements [holder].
func (h *foreignHold) move(from, to *grant) {
	fc, id := h.fc, h.client.Id()
	moved := &foreignHold{fc: fc, client: h.client, key: h.key, grant: to, payer: h.payer}

	fc.mu.Lock()
	moves := fc.holds[id][h.key] == h && h.grant == from
	if moves {
		moved.seat, h.seat = h.seat, nil
		fc.holds[id][h.key] = moved
		fc.grants.hold(to, moved)
		fc.grants.drop(from, h)
	}
	fc.mu.Unlock()

	if !moves {
		fc.grants.release(to)
	}
}

// subscriptionKey implements [holder].
func (h *foreignHold) subscriptionKey() string { return h.key }

// guest implements [holder].
func (h *foreignHold) guest() owner { return h.payer }

// resume implements [holder]. Nothing is held back: see mayReceive.
func (h *foreignHold) resume(*grant) {
	if h.client.IsDiscarded() {
		h.fc.setGrants(h.client, "", nil, nil)
	}
}

// revoke implements [holder].
func (h *foreignHold) revoke(g *grant, marked uint64, o outcome) bool {
	if !g.denies(marked) {
		return false
	}

	fc, id := h.fc, h.client.Id()

	fc.mu.Lock()
	held := fc.holds[id][h.key] == h
	ended := &foreignHold{fc: fc, client: h.client, key: h.key} // nothing is sent
	if held {
		h.seat.free()
		h.seat = nil
		fc.holds[id][h.key] = ended
	}
	fc.mu.Unlock()

	if held {
		h.client.Unsubscribe(h.key)

		fc.mu.Lock()
		if fc.holds[id][h.key] == ended {
			delete(fc.holds[id], h.key)
			if len(fc.holds[id]) == 0 {
				delete(fc.holds, id)
			}
		}
		fc.mu.Unlock()
		fc.grants.drop(g, h)
		fc.send(h.client, o.revocation(g.key.topic).onKey(h.key, false))
	}
	return true
}
