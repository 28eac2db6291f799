package topics

import (
	"container/list"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"sync"
	"time"
)

// position is how far a subscriber with the resume option has come. It stays
// for a while after the connection has ended.
type position struct {
	id    string // in the store
	owner owner

	// guarded by the store
	topic   string
	used    *list.Element // of all
	owned   *list.Element // of the owner's
	expires time.Time     // counts while no subscription holds it
	gone    bool

	mu sync.Mutex

	// open are the connections that have it: normally one. ends are those that
	// have ended and that nobody has come back from. Who comes back does not say
	// from which, so it is the earliest: then nothing is missing.
	open map[*subscription]*track
	ends []*track
}

// mark is a message up to which everything was flushed at that time.
type mark struct {
	epoch  string
	offset uint64
	at     time.Time
}

// flushed says that everything up to m has gone to the connection.
func (p *position) flushed(s *subscription, m mark, overlap time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()

	if t := p.open[s]; t != nil {
		t.add(m, overlap)
	}
}

// resumption is where a subscription goes on.
type resumption struct {
	from mark

	// skipped, unless nil, is the earlier place from which all that is between
	// was flushed several times and may have arrived.
	skipped *mark

	// flushed is up to where something was sent to a connection before.
	flushed mark
}

// take gives the position to s, and returns where to go on. It reports false for
// a position that was never written.
func (p *position) take(s *subscription, overlap time.Duration) (r resumption, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()

	ended, live := p.earliest()
	if ended == nil {
		p.put(s, new(track))
		return r, false
	}
	if live {
		// it is of a connection that seems to live: which may be another client's
		ended = ended.end(true, overlap)
	} else {
		p.ends = slices.DeleteFunc(p.ends, func(t *track) bool { return t == ended })
	}
	t, skipped := ended.next(time.Now(), overlap)
	p.put(s, t)
	r = resumption{from: t.certain, flushed: ended.flushedTo()}
	if skipped {
		r.skipped = &ended.certain
	}
	return r, true
}

// earliest is the track that is the farthest behind for certain, and whether its
// connection lives. p.mu is held.
func (p *position) earliest() (found *track, live bool) {
	for _, t := range p.ends {
		if found == nil || compareMarks(t.certain, found.certain) < 0 {
			found = t
		}
	}
	for _, t := range p.open {
		if len(t.marks) > 0 && (found == nil || compareMarks(t.certain, found.certain) < 0) {
			found, live = t, true
		}
	}
	return found, live
}

func (p *position) put(s *subscription, t *track) {
	if p.open == nil {
		p.open = map[*subscription]*track{}
	}
	p.open[s] = t
}

// start is where a subscriber comes in for the first time, or says that it is.
func (p *position) start(s *subscription, m mark) {
	p.mu.Lock()
	defer p.mu.Unlock()

	if t := p.open[s]; t != nil {
		*t = track{certain: m, marks: []mark{m}}
	}
}

// takeOver makes what s has received under another position that of this one.
// What an earlier connection has received under it counts no longer: s goes on.
func (p *position) takeOver(s *subscription, other *position) {
	other.mu.Lock()
	t := other.open[s]
	delete(other.open, s)
	other.mu.Unlock()

	p.mu.Lock()
	defer p.mu.Unlock()
	p.ends = nil
	if t == nil {
		t = new(track)
	}
	p.put(s, t)
}

// told says that a gap up to m was told, so that it is not told again by the
// connection.
func (p *position) told(s *subscription, m mark, overlap time.Duration) { p.flushed(s, m, overlap) }

// hear says that the client of a connection was heard of.
func (p *position) hear(s *subscription, overlap time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()

	if t := p.open[s]; t != nil {
		t.hear(overlap)
	}
}

// leave ends the connection's part, at its end or, if it was dead by then, when
// its client was last heard of. It reports false if s has none.
func (p *position) leave(s *subscription, dead bool, overlap time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()

	t := p.open[s]
	if t == nil {
		return false
	}
	delete(p.open, s)
	if len(t.marks) == 0 {
		return true
	}
	p.ends = append(p.ends, t.end(dead, overlap))
	if len(p.ends) > maxEnds {
		// the one that is the farthest ahead: others begin before it
		last := slices.MaxFunc(p.ends, func(a, b *track) int { return compareMarks(a.certain, b.certain) })
		p.ends = slices.DeleteFunc(p.ends, func(t *track) bool { return t == last })
	}
	return true
}

// certain is the mark to resume from, if everybody leaves now.
func (p *position) certain(overlap time.Duration) (m mark, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()

	consider := func(t *track) {
		if !ok || compareMarks(t.certain, m) < 0 {
			m, ok = t.certain, true
		}
	}
	for _, t := range p.ends {
		consider(t)
	}
	for _, t := range p.open {
		if len(t.marks) > 0 {
			consider(t.end(false, overlap))
		}
	}
	return m, ok
}

func (p *position) isHeld() bool {
	p.mu.Lock()
	defer p.mu.Unlock()

	return len(p.open) > 0
}

// lose says that messages may have gone with the log that the position is of:
// whoever is before the first one has missed it.
func (p *position) lose() {
	p.mu.Lock()
	defer p.mu.Unlock()

	for _, t := range p.open {
		t.lose()
	}
	for _, t := range p.ends {
		t.lose()
	}
}

// positions are all of them, in memory and maybe on the disk.
type positions struct {
	disk    *disk // nil: in memory only
	keep    time.Duration
	overlap time.Duration
	max     int
	each    int // of one owner, -1 for no limit

	mu      sync.Mutex
	byID    map[string]*position
	byTopic map[string]map[*position]struct{}
	byOwner map[owner]*list.List // *position, the most recently used first
	order   *list.List           // *position, likewise
	evicted uint64
}

func newPositions(config Config) *positions {
	return &positions{
		keep:    config.ResumeFor,
		overlap: config.ResumeOverlap,
		max:     config.MaxPositions,
		each:    config.MaxPositionsPerSubscriber,
		byID:    map[string]*position{},
		byTopic: map[string]map[*position]struct{}{},
		byOwner: map[owner]*list.List{},
		order:   list.New(),
	}
}

// positionID is where the position of a subscription is kept. The auth is
// part of it, so that the resume option of somebody else is worth nothing.
func positionID(auth credentials, topic, resume string) string {
	sum := sha256.Sum256([]byte(auth.collection + "\x00" + auth.id + "\x00" + topic + "\x00" + resume))
	return hex.EncodeToString(sum[:])
}

// open takes over what the disk has of earlier processes. Those from before
// that in this process are not on the disk, and go.
func (ps *positions) open(saved []savedPosition) {
	ps.mu.Lock()
	defer ps.mu.Unlock()

	for _, p := range ps.byID {
		ps.remove(p)
	}
	for _, s := range saved { // the one that expires last is the most recently used
		p := &position{id: s.id, owner: s.owner, topic: s.topic, expires: s.expires}
		p.ends = []*track{{certain: mark{epoch: s.epoch, offset: s.offset}}}
		ps.put(p)
	}
}

// of returns the position with that id. If there is none, it is new, and on its
// way to the disk with the topic's head: write is then the write's number, for
// which somebody should wait, so that the server does not forget the position
// when it is killed.
func (ps *positions) of(id, topic string, who owner, head mark) (p *position, write uint64) {
	ps.mu.Lock()
	defer ps.mu.Unlock()

	now := time.Now()
	expires := now.Add(ps.keep) // unless a subscription takes it
	p = ps.byID[id]
	if p != nil && !p.isHeld() && now.After(p.expires) {
		ps.end(p)
		p = nil
	}
	if p != nil {
		p.expires = expires
		ps.moveTo(p, topic)
		ps.order.MoveToFront(p.used)
		ps.byOwner[p.owner].MoveToFront(p.owned)
		return p, 0
	}

	p = &position{id: id, owner: who, topic: topic, expires: expires}
	ps.put(p)
	ps.evict(p)
	return p, ps.write(p, head)
}

// put expects ps.mu to be held.
func (ps *positions) put(p *position) {
	ps.byID[p.id] = p
	p.used = ps.order.PushFront(p)
	owned := ps.byOwner[p.owner]
	if owned == nil {
		owned = list.New()
		ps.byOwner[p.owner] = owned
	}
	p.owned = owned.PushFront(p)
	ps.moveTo(p, p.topic)
}

// moveTo notes the position's topic, which those of an old table do not know.
func (ps *positions) moveTo(p *position, topic string) {
	if ps.byTopic[topic] == nil {
		ps.byTopic[topic] = map[*position]struct{}{}
	}
	if p.topic != topic {
		ps.leave(p)
		p.topic = topic
	}
	ps.byTopic[topic][p] = struct{}{}
}

func (ps *positions) leave(p *position) {
	delete(ps.byTopic[p.topic], p)
	if len(ps.byTopic[p.topic]) == 0 {
		delete(ps.byTopic, p.topic)
	}
}

// write expects ps.mu to be held, or the position not to be in use.
func (ps *positions) write(p *position, m mark) uint64 {
	if ps.disk == nil || p.gone {
		return 0
	}
	return ps.disk.addState("position\x00"+p.id, &positionWrite{savedPosition{
		id: p.id, topic: p.topic, owner: p.owner, epoch: m.epoch, offset: m.offset, expires: time.Now().Add(ps.keep),
	}})
}

// release lets the position expire, unless another subscription has it.
func (ps *positions) release(p *position, s *subscription, dead bool) {
	if p.leave(s, dead, ps.overlap) {
		ps.save(p)
	}
}

// drop ends a position that was taken over, unless others have it.
func (ps *positions) drop(p *position) {
	p.mu.Lock()
	used := len(p.open)+len(p.ends) > 0
	p.mu.Unlock()

	ps.mu.Lock()
	defer ps.mu.Unlock()
	if !used && !p.gone {
		ps.end(p)
	}
}

// save puts a position on the disk, so that the server knows of it after an
// unclean stop.
func (ps *positions) save(p *position) {
	m, ok := p.certain(ps.overlap)
	ps.mu.Lock()
	defer ps.mu.Unlock()

	p.expires = time.Now().Add(ps.keep)
	if ok {
		ps.write(p, m)
	}
}

// all returns what is still valid, for the disk.
func (ps *positions) all() []savedPosition {
	ps.mu.Lock()
	defer ps.mu.Unlock()

	now := time.Now()
	var saved []savedPosition
	for id, p := range ps.byID {
		m, ok := p.certain(ps.overlap)
		held := p.isHeld()
		if !ok || !held && now.After(p.expires) {
			continue
		}
		expires := p.expires
		if held {
			expires = now.Add(ps.keep)
		}
		saved = append(saved, savedPosition{id: id, topic: p.topic, owner: p.owner, epoch: m.epoch, offset: m.offset, expires: expires})
	}
	return saved
}

// sweep drops what has expired.
func (ps *positions) sweep(now time.Time) {
	ps.mu.Lock()
	defer ps.mu.Unlock()

	for _, p := range ps.byID {
		if now.After(p.expires) && !p.isHeld() {
			ps.end(p)
		}
	}
}

// evict makes room, for the owner of the newest and for all. Guests whose
// addresses say nothing have half of all together. ps.mu is held.
func (ps *positions) evict(newest *position) {
	share := ps.each
	switch {
	case newest.owner == guestsOwner:
		share = max(1, ps.max/2)
	case share < 0:
		share = ps.max
	}
	for owned := ps.byOwner[newest.owner]; owned.Len() > share; {
		ps.evicted++
		ps.end(owned.Back().Value.(*position))
	}
	for ps.order.Len() > ps.max {
		ps.evicted++
		ps.end(ps.order.Back().Value.(*position))
	}
}

// forgetTopic ends the positions of a topic that is another one now.
func (ps *positions) forgetTopic(topic string) {
	ps.mu.Lock()
	defer ps.mu.Unlock()

	for p := range ps.byTopic[topic] {
		ps.end(p)
	}
}

// dropped says that a topic's log is gone, and others may come.
func (ps *positions) dropped(topic string) {
	ps.mu.Lock()
	defer ps.mu.Unlock()

	for p := range ps.byTopic[topic] {
		p.lose()
		if m, ok := p.certain(ps.overlap); ok {
			ps.write(p, m)
		}
	}
}

// topics returns those with positions.
func (ps *positions) topics() (topics []string) {
	ps.mu.Lock()
	defer ps.mu.Unlock()

	for topic := range ps.byTopic {
		topics = append(topics, topic)
	}
	return topics
}

// end expects ps.mu to be held.
func (ps *positions) end(p *position) {
	ps.remove(p)
	if ps.disk != nil {
		ps.disk.addState("position\x00"+p.id, positionEnd{p.id})
	}
}

// remove expects ps.mu to be held.
func (ps *positions) remove(p *position) {
	p.gone = true
	delete(ps.byID, p.id)
	ps.order.Remove(p.used)
	owned := ps.byOwner[p.owner]
	owned.Remove(p.owned)
	if owned.Len() == 0 {
		delete(ps.byOwner, p.owner)
	}
	ps.leave(p)
}

// openHistory makes the topic's log and the subscriber's position ready to be
// read without a database. write is what a request waits for, once for all of
// its keys. What could not be read is told to the subscriber as a gap.
func (p *Plugin) openHistory(patience *diskWait, topic string, options subscribeOptions, auth credentials, who owner) (position *position, keeps bool) {
	r, err := p.retentionOf(topic)
	if err != nil {
		p.logHistoryError(topic, err)
		return nil, false
	}
	if !r.keeps() {
		return nil, false
	}
	if options.replay > 0 || options.resume != "" {
		if err := p.history.load(patience.ctx, topic); err != nil {
			p.logHistoryError(topic, err)
		}
	}
	if options.resume == "" {
		return nil, true
	}
	position, write := p.history.positions.of(positionID(auth, topic, options.resume), topic, who, p.hub.head(topic))
	patience.write = max(patience.write, write)
	return position, true
}
