package topics

import (
	"sync"
	"sync/atomic"
	"time"
)

// flushPeriod is the least time between two flushes of a topic's presence: what
// changes in between is told at once, in at most one event each of join,
// update and leave. bench/RESULTS.md says what it costs to enter a room of
// 5,000.
const flushPeriod = 250 * time.Millisecond

// leaveDelay is how long a member stays after its connection has unsubscribed:
// an unsubscribe and a subscribe in a row are no leave and no join.
const leaveDelay = 500 * time.Millisecond

// presence keeps the members of all topics. They are in the hub's shards, each
// guarded by the lock that orders the topic's messages; so presence events have
// their place among these.
type presence struct {
	hub    *hub
	grants *grants
	calls  *hookCalls
	disk   *disk // nil: in memory only
	guard  *guard

	grace time.Duration // 0 for none
	limit int           // members of a snapshot
	bytes int           // of a snapshot

	stated atomic.Uint64 // counts the states that were set
	secret atomic.Pointer[string]

	// members from before a restart are looked for until then
	restoring atomic.Int64 // Unix nanoseconds

	// the goroutine that ends graces and flushes, started when it is needed
	start   sync.Once
	end     sync.Once
	wake    chan struct{}
	stop    chan struct{}
	running sync.WaitGroup

	mu       sync.Mutex // taken while holding a shard's lock, never the other way
	endings  deadlines
	occupied map[string]*occupancy
	restored map[string]chan struct{} // topics, while restoring: closed when done
}

func newPresence(hub *hub, grants *grants, calls *hookCalls, disk *disk, config Config) *presence {
	p := &presence{
		hub:      hub,
		grants:   grants,
		calls:    calls,
		disk:     disk,
		grace:    config.PresenceGrace,
		limit:    config.PresenceSnapshot,
		bytes:    min(256<<10, config.QueueBytes/4),
		wake:     make(chan struct{}, 1),
		stop:     make(chan struct{}),
		occupied: map[string]*occupancy{},
		restored: map[string]chan struct{}{},
	}
	secret := newSecret()
	p.secret.Store(&secret)
	hub.presence = p
	return p
}

// close ends the goroutine. Nobody leaves any more: the next start expects the
// members back.
func (p *presence) close() {
	p.end.Do(func() { close(p.stop) })
	p.start.Do(func() {}) // it is not started any more
	p.running.Wait()
	for _, topic := range p.queuedFlushes() {
		p.flushQueued(topic) // for the disk
	}
	if p.disk != nil && p.hub.anyMembers() {
		p.disk.addState("alive", membersAlive{})
	}
}

// members returns those of a topic. The shard's lock is held.
func (p *presence) members(shard *hubShard, topic string) *topicMembers {
	tm := shard.members[topic]
	if tm == nil {
		tm = newTopicMembers(topic)
		shard.members[topic] = tm
	}
	return tm
}

// arrive makes s one of the connections of a member. The shard's lock is held.
func (p *presence) arrive(shard *hubShard, s *subscription, id *identity) {
	tm := p.members(shard, s.topic)
	key := p.keyFor(tm, id, s)
	m := tm.byKey[key]
	if m == nil {
		m = &member{key: key, since: time.Now(), lasting: !s.options.others && (!id.guest || s.seat.lasting)}
		tm.byKey[key] = m
		tm.mark(m, false)
	}

	a := m.of(s.client)
	if a == nil {
		a = &attendee{presence: p, topic: s.topic, member: m, client: s.client}
		if id.guest {
			a.seat = s.seat
			a.seat.holders++
		}
		p.thin(tm, m)
		m.attendees = append(m.attendees, a)
	} else if !a.ends.IsZero() {
		p.revive(a)
	}
	a.subscriptions++
	s.attendee = a
	if s.options.state != nil {
		p.setState(a, s.options.state)
	}
	tm.refresh(m, id)
	p.changed(shard, tm)
}

// setState expects the topic's lock to be held, and a refresh to follow. What
// connections that are gone have set counts no more.
func (p *presence) setState(a *attendee, state []byte) {
	for _, other := range a.member.attendees {
		if !other.ends.IsZero() {
			other.state = nil
		}
	}
	a.state, a.stated = state, p.stated.Add(1)
}

// thin ends the graces of a member that is back, apart from that of the
// connection whose state is shown: so that they do not pile up.
func (p *presence) thin(tm *topicMembers, m *member) {
	var newest *attendee
	for _, a := range m.attendees {
		if a.state != nil && (newest == nil || a.stated > newest.stated) {
			newest = a
		}
	}
	kept := m.attendees[:0]
	for _, a := range m.attendees {
		if a.ends.IsZero() || a == newest {
			kept = append(kept, a)
			continue
		}
		p.revive(a)
		a.member = nil
		tm.rise(a.client, &a.seat)
	}
	clear(m.attendees[len(kept):])
	m.attendees = kept
}

// revive takes an attendee out of its grace.
func (p *presence) revive(a *attendee) {
	a.ends = time.Time{}
	p.mu.Lock()
	p.cancel(a.ending)
	a.ending = nil
	p.mu.Unlock()

	if a.grant != nil {
		p.grants.drop(a.grant, a)
		a.grant = nil
	}
}

// depart ends the part of s in its attendee: now, or with the grace. Then the
// attendee takes over the subscription's grant, and depart reports true. The
// shard's lock is held, and subsMu of the client.
func (p *presence) depart(shard *hubShard, s *subscription, now bool) (lingers bool) {
	a := s.attendee
	if a == nil {
		return false
	}
	s.attendee = nil
	a.subscriptions--
	if a.subscriptions > 0 {
		return false
	}

	tm := shard.members[s.topic]
	if now || p.grace == 0 {
		tm.remove(a)
		p.changed(shard, tm)
		return false
	}
	a.key = s.key
	if a.grant = s.grant; a.grant != nil {
		p.grants.handOver(a.grant, s, a)
	}
	grace := p.grace
	if !s.client.discarded {
		grace = min(grace, leaveDelay) // it has left, and its connection goes on
	}
	p.linger(a, time.Now().Add(grace))
	tm.refresh(a.member, nil)
	if a.grant != nil {
		p.decided(shard, a, a.grant) // it may have been, before it had this holder
	}
	return true
}

// rise ends the part of a subscription that is over in its connection's seat.
// The shard's lock is held.
func (p *presence) rise(shard *hubShard, s *subscription) {
	if tm := shard.members[s.topic]; tm != nil && s.seat != nil {
		tm.rise(s.client, &s.seat)
		tm.tidy(shard)
	}
}

func (p *presence) linger(a *attendee, until time.Time) {
	a.ends = until
	p.mu.Lock()
	a.ending = p.at(until)
	a.ending.attendee = a
	p.mu.Unlock()
	p.wakeUp()
}

// attend makes the attendee of s the one that its newest decision knows. The
// shard's lock is held.
func (p *presence) attend(shard *hubShard, s *subscription, id *identity) {
	a := s.attendee
	switch {
	case a == nil && id == nil:
	case a == nil:
		p.arrive(shard, s, id)
	case id == nil || a.member.key != p.keyFor(shard.members[s.topic], id, s):
		p.depart(shard, s, true)
		if id != nil {
			p.arrive(shard, s, id)
		}
	default:
		p.updated(shard, a, id)
	}
}

// updated takes over what an auth record or a rule shows by now.
func (p *presence) updated(shard *hubShard, a *attendee, id *identity) {
	tm := shard.members[a.topic]
	if string(a.member.record) == string(id.record) && a.member.collection == id.name {
		return
	}
	tm.refresh(a.member, id)
	p.changed(shard, tm)
}

// resume implements [holder], for an attendee in its grace.
func (a *attendee) resume(g *grant) {
	shard := a.presence.hub.shard(a.topic)
	shard.mu.Lock()
	defer shard.mu.Unlock()

	a.presence.decided(shard, a, g)
}

// decided takes over what the newest decision says of an attendee in its grace.
// The shard's lock is held.
func (p *presence) decided(shard *hubShard, a *attendee, g *grant) {
	if a.member == nil || a.grant != g || !g.fresh(time.Now().UnixNano()) {
		return
	}
	id := g.identity.Load()
	if id != nil && (id.guest && a.member.key.collection == "" || a.member.key == memberKey{id.collection, id.id}) {
		p.updated(shard, a, id)
		return
	}
	p.leave(shard, a)
}

// revoke implements [holder]: who may not be there is not shown either.
func (a *attendee) revoke(g *grant, marked uint64, _ outcome) bool {
	p := a.presence
	shard := p.hub.shard(a.topic)
	shard.mu.Lock()
	defer shard.mu.Unlock()

	counts := g.denies(marked)
	if counts && a.member != nil && a.grant == g {
		p.leave(shard, a)
	}
	return counts
}

// move implements [holder].
func (a *attendee) move(from, to *grant) {
	gs := a.presence.grants
	shard := a.presence.hub.shard(a.topic)
	shard.mu.Lock()
	defer shard.mu.Unlock()

	if a.member == nil || a.grant != from {
		gs.release(to)
		return
	}
	a.grant = to
	gs.hold(to, a)
	gs.drop(from, a)
}

// subscriptionKey implements [holder].
func (a *attendee) subscriptionKey() string { return a.key }

// guest implements [holder].
func (a *attendee) guest() owner {
	if a.client == nil {
		return "" // from before a restart
	}
	return a.client.guest
}

// leave ends an attendee's grace. The shard's lock is held.
func (p *presence) leave(shard *hubShard, a *attendee) {
	p.revive(a)
	tm := shard.members[a.topic]
	tm.remove(a)
	p.changed(shard, tm)
}

// call tells the app's handlers. It does not block.
func (p *presence) call(topic string, c changes) {
	if !p.calls.wantsMembers.Load() {
		return
	}
	for _, m := range c.left {
		p.calls.add(call{kind: callLeave, topic: topic, key: m.key, member: m.line().member()})
	}
	for _, m := range c.joined {
		p.calls.add(call{kind: callJoin, topic: topic, key: m.key, member: m.line().member()})
	}
}

func (p *presence) ended(a *attendee, now time.Time) {
	shard := p.hub.shard(a.topic)
	shard.mu.Lock()
	defer shard.mu.Unlock()

	if a.member != nil && !a.ends.IsZero() && !a.ends.After(now) {
		p.leave(shard, a)
	}
}
