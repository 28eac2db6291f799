package topics

import (
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// hubShards spreads the topics over locks, so that publishing to one topic
	// rarely waits for another.
	hubShards = 256

	// fanOutChunk is how many subscribers of one topic make a fan-out worth
	// more than one goroutine. Queuing one message takes some 100 ns.
	fanOutChunk = 4096
)

// hub knows the subscribers of each topic in this process and hands messages
// to them.
//
// Lock order: client.subsMu, shard.mu, then those of client, presence and grants.
type hub struct {
	seed   maphash.Seed
	shards [hubShards]hubShard

	clients sync.Map // *client -> struct{}, all connected ones

	history  *history
	overlap  time.Duration // Config.ResumeOverlap
	presence *presence
	quota    *quota

	// which member a client is that Go code has subscribed to a topic
	identify func(c *client, topic string) *identity

	// registered counts the clients that are certainly in PocketBase's broker:
	// never more than there are
	registered atomic.Int64
}

type hubShard struct {
	mu sync.Mutex

	// topic -> subscription key -> its subscribers. Holding mu while queuing a
	// message is what gives all subscribers of a topic one order.
	topics map[string]map[string]*keyGroup

	members map[string]*topicMembers // of topics that have or had some lately

	logs map[string]*topicLog // of topics that keep something
}

// keyGroup holds the subscribers with the same subscription key, which share
// the event line of their frames.
type keyGroup struct {
	event       *eventLine
	enveloped   bool
	subscribers []*subscription
}

// subscription is one key of one client, as the hub sees it.
type subscription struct {
	client   *client
	topic    string
	key      string
	options  subscribeOptions
	position *position // of the resume option, where the topic keeps a history
	keeps    bool      // the topic keeps a history
	claim    *string   // the id of the last message that the client has

	// guarded by the shard's lock
	group     *keyGroup
	pos       int    // in group.subscribers
	grant     *grant // nil: Go code subscribed the client, no rule was asked
	taken     *seat  // nil: nobody's limit holds; guarded by client.subsMu
	held      []frame
	heldBytes int
	behind    *cursor // nil: it is live
	attendee  *attendee
	seat      *guestSeat // of a guest, where the topic has members

	// of the presence option
	watching bool
	watch    *grant // nil: Go code subscribed the client
	due      bool   // it waits for a snapshot
	pressed  bool   // until there is room
	refused  bool   // its client was told so; guarded by client.subsMu
}

func newHub() *hub {
	h := &hub{seed: maphash.MakeSeed()}
	for i := range h.shards {
		h.shards[i].topics = map[string]map[string]*keyGroup{}
		h.shards[i].logs = map[string]*topicLog{}
		h.shards[i].members = map[string]*topicMembers{}
	}
	return h
}

func (h *hub) shard(topic string) *hubShard {
	return &h.shards[maphash.String(h.seed, topic)%hubShards]
}

// add makes s receive its topic's messages, after what it has asked for of
// those before, and makes it one of the connections of a member.
func (h *hub) add(s *subscription, a *admission) {
	shard := h.shard(s.topic)
	shard.mu.Lock()
	defer shard.mu.Unlock()

	keys := shard.topics[s.topic]
	if keys == nil {
		keys = map[string]*keyGroup{}
		shard.topics[s.topic] = keys
		h.presence.occupy(s.topic)
	}
	group := keys[s.key]
	if group == nil {
		group = &keyGroup{event: newEventLine(s.key), enveloped: s.options.envelope}
		keys[s.key] = group
	}

	s.group, s.pos = group, len(group.subscribers)
	group.subscribers = append(group.subscribers, s)
	h.enter(shard, s, a.identity)
	if a.watches() {
		h.presence.enlist(shard, s, a.watch)
	}
	if a.grant == nil || a.grant.fresh(time.Now().UnixNano()) {
		h.presence.attend(shard, s, a.identity)
	} // else the next decision lets it be a member, or not
	h.presence.show(shard, s)
}

// remove ends a subscription. If it was the last one of a member's connection,
// that ends now or after the grace, for which it may take over the grant: then
// remove reports true.
func (h *hub) remove(s *subscription, now bool) (lingers bool) {
	shard := h.shard(s.topic)
	shard.mu.Lock()
	defer shard.mu.Unlock()

	group := s.group
	s.group = nil
	s.takeHeld()
	if s.behind != nil {
		s.behind = nil
		s.client.behind.Add(-1)
	}
	h.presence.unwatch(shard, s)
	lingers = h.presence.depart(shard, s, now)
	h.presence.rise(shard, s)
	last := len(group.subscribers) - 1
	group.subscribers[s.pos] = group.subscribers[last]
	group.subscribers[s.pos].pos = s.pos
	group.subscribers[last] = nil
	group.subscribers = group.subscribers[:last]

	if last > 0 {
		return lingers
	}
	keys := shard.topics[s.topic]
	delete(keys, s.key)
	if len(keys) == 0 {
		delete(shard.topics, s.topic)
		h.presence.vacate(s.topic)
	}
	return lingers
}

// watch lets a subscription see the members, by g.
func (h *hub) watch(s *subscription, g *grant) {
	shard := h.shard(s.topic)
	shard.mu.Lock()
	defer shard.mu.Unlock()

	h.presence.enlist(shard, s, g)
	h.presence.show(shard, s)
}

func (h *hub) unwatch(s *subscription) {
	shard := h.shard(s.topic)
	shard.mu.Lock()
	defer shard.mu.Unlock()

	h.presence.unwatch(shard, s)
}

// setGrant makes the subscription live by another grant.
func (h *hub) setGrant(s *subscription, g *grant) {
	shard := h.shard(s.topic)
	shard.mu.Lock()
	defer shard.mu.Unlock()

	s.grant = g
}

// release queues what was held back while the grant was stale, or what is to
// follow from the history. It reports false if the client's queue was full.
func (h *hub) release(s *subscription, g *grant) (ok bool) {
	shard := h.shard(s.topic)
	shard.mu.Lock()
	defer shard.mu.Unlock()

	if s.group == nil || s.grant != g {
		return true
	}
	if !g.fresh(time.Now().UnixNano()) {
		if len(s.held) > 0 {
			s.client.grants.ask(g) // it has ended already, or was touched
		}
		return true
	}
	for _, f := range s.takeHeld() {
		if s.client.enqueue(f) {
			continue
		}
		if !s.fallBehind(f.entry) {
			return false
		}
		break
	}
	h.fill(shard, s)
	h.presence.attend(shard, s, g.identity.Load())
	h.presence.retry(shard, s)
	return true
}

// stale returns the grants of a topic's subscribers that a publisher decides
// itself: some of those that need a new decision, and few of each account.
func (h *hub) stale(topic string) []*grant {
	now := time.Now().UnixNano()

	shard := h.shard(topic)
	shard.mu.Lock()
	defer shard.mu.Unlock()

	var (
		found    []*grant
		last     *grant
		accounts map[owner]int // guests count together: they share decisions, unless they send options
	)
	for _, group := range shard.topics[topic] {
		for _, s := range group.subscribers {
			if s.grant == nil || s.grant == last || s.grant.fresh(now) || slices.Contains(found, s.grant) {
				continue
			}
			last = s.grant
			if accounts == nil {
				accounts = map[owner]int{}
			}
			if accounts[last.account] >= inlinePerOwner {
				continue
			}
			accounts[last.account]++
			found = append(found, last)
			if len(found) >= inlineDecisions {
				return found
			}
		}
	}
	return found
}

// publish gives the message its place in the topic's history, if that is kept,
// and queues it for every subscriber and for the foreign clients. Where a subscriber's grant is stale, the message is held
// back. It returns the clients whose queue was full: the caller closes them. With
// an error nothing was sent.
func (h *hub) publish(m Message, foreign *foreignClients, r retention) (id string, slow []*client, err error) {
	e := newEntry(m)
	sweep := foreign.present(h.registered.Load())

	shard := h.shard(m.Topic)
	shard.mu.Lock()
	defer shard.mu.Unlock()

	if r.keeps() {
		if err := h.history.keep(shard, e, r); err != nil {
			return "", nil, err
		}
	} else if l := shard.logs[m.Topic]; l != nil {
		h.history.drop(shard, l, gapEvicted) // its rule keeps none any longer
	}
	now := time.Now().UnixNano()
	var fallen []*subscription
	for _, group := range shard.topics[m.Topic] {
		var full []*subscription
		full = group.fanOut(e, now, full)
		for _, s := range full {
			if s.fallBehind(e) {
				fallen = append(fallen, s)
			} else {
				slow = append(slow, s.client)
			}
		}
	}
	for _, s := range fallen {
		// its writer may have come to the end of the queue just now
		h.fill(shard, s)
	}
	if sweep {
		foreign.queue(m, e.plain)
	}

	return e.id(), slow, nil
}

// fanOut returns the subscribers whose queue was full.
func (g *keyGroup) fanOut(e *entry, now int64, full []*subscription) []*subscription {
	f := e.frame(g.event, g.enveloped)
	if len(g.subscribers) <= fanOutChunk {
		return g.fanOutChunk(g.subscribers, f, now, full)
	}

	// a goroutine for each few thousand subscribers, waited for under the
	// topic's lock: all it does is queuing
	var (
		workers errgroup.Group
		mu      sync.Mutex
	)
	for start := 0; start < len(g.subscribers); start += fanOutChunk {
		chunk := g.subscribers[start:min(start+fanOutChunk, len(g.subscribers))]
		workers.Go(func() error {
			if found := g.fanOutChunk(chunk, f, now, nil); len(found) > 0 {
				mu.Lock()
				full = append(full, found...)
				mu.Unlock()
			}
			return nil
		})
	}
	_ = workers.Wait() // the workers return no error

	return full
}

func (g *keyGroup) fanOutChunk(subscribers []*subscription, f frame, now int64, full []*subscription) []*subscription {
	except := f.entry.message.Except
	for _, s := range subscribers {
		if s.behind != nil || except != "" && s.client.is(except) {
			continue
		}
		ok := false
		if s.grant == nil || s.grant.fresh(now) && len(s.held) == 0 {
			ok = s.client.enqueue(f)
		} else {
			ok = s.hold(f)
		}
		if !ok {
			full = append(full, s)
		}
	}
	return full
}

// close ends all connections, also those that are blocked in a write.
func (h *hub) close() {
	h.clients.Range(func(c, _ any) bool {
		c.(*client).close()
		return true
	})
}
