package topics

import "time"

// The reasons of a gap.
const (
	gapExpired = "expired" // older than the history keeps
	gapEvicted = "evicted" // the topic's history was dropped
	gapDeleted = "deleted" // so was the record that the topic is named after
	gapUnread  = "unread"  // the disk could not be read

	// the connections were too short to know whether what was flushed arrived
	gapRepeated = "repeated"
	gapEpoch    = "epoch" // the server was not stopped properly
	gapSlow     = "slow"  // the client read too slowly
)

// cursor is where a subscriber reads the topic's log, because it has just come
// or cannot keep up. Live messages pass it by: they are in the log too. Once
// it has reached the end, under the topic's lock, it is live: so there is no
// hole, no repetition and no other order between replay and live.
type cursor struct {
	epoch  string
	offset uint64 // the last one it has

	slow     bool // it was live before
	resumed  bool // recovered is sent at the end
	replayed int
	gap      bool // a gap was told
	unread   bool // what is on the disk only could not be read

	// flushed is up to where messages were sent to a connection before, and may
	// have arrived.
	flushed mark
}

// head is the position of a topic's newest message.
func (h *hub) head(topic string) mark {
	shard := h.shard(topic)
	shard.mu.Lock()
	defer shard.mu.Unlock()

	return h.headOf(shard, topic)
}

// headOf expects the shard's lock to be held.
func (h *hub) headOf(shard *hubShard, topic string) mark {
	if log := shard.logs[topic]; log != nil {
		return mark{epoch: log.epoch, offset: log.last, at: time.Now()}
	}
	return h.history.virtual()
}

// enter is the beginning of a subscription. The shard's lock is held.
func (h *hub) enter(shard *hubShard, s *subscription, who *identity) {
	r, resumed := h.from(shard, s)
	if log := shard.logs[s.topic]; resumed || log != nil {
		s.behind = &cursor{epoch: r.from.epoch, offset: r.from.offset, resumed: resumed, flushed: r.flushed}
		s.client.behind.Add(1)
	}
	if s.options.envelope {
		id := ""
		if s.keeps && r.from.epoch != "" {
			id = messageID(r.from.epoch, r.from.offset)
		}
		s.tellReady(shard, id, resumed, who)
	}
	if r.skipped != nil {
		s.behind.epoch, s.behind.offset = r.skipped.epoch, r.skipped.offset
		s.tellGap(s.behind, r.from.epoch, r.from.offset+1, gapRepeated)
		s.behind.epoch, s.behind.offset = r.from.epoch, r.from.offset
	}
	h.fill(shard, s)
}

// from is where a subscription begins, and whether that is where an earlier one
// has ended. What the client says that it has comes before what the server knows
// of it. The shard's lock is held.
func (h *hub) from(shard *hubShard, s *subscription) (r resumption, resumed bool) {
	if s.position != nil {
		r, resumed = s.position.take(s, h.overlap)
	}
	if s.claim != nil {
		r = resumption{}
		r.from, resumed = claimed(*s.claim)
	}
	if log := shard.logs[s.topic]; !resumed && (log != nil || s.keeps) {
		r.from = h.headOf(shard, s.topic)
		if log != nil && s.options.replay > 0 {
			r.from.epoch, r.from.offset = log.lastOf(s.options.replay)
		}
	}
	if s.position != nil && r.from.epoch != "" {
		if !resumed || s.claim != nil {
			s.position.start(s, r.from)
		}
		h.history.positions.save(s.position)
	}
	return r, resumed
}

// reposition lets a subscription move another position from now on.
func (h *hub) reposition(s *subscription, p *position) {
	shard := h.shard(s.topic)
	shard.mu.Lock()
	defer shard.mu.Unlock()

	old := s.position
	s.position = p
	if old != nil {
		p.takeOver(s, old)
		return
	}
	p.take(s, h.overlap)
	p.start(s, h.headOf(shard, s.topic))
}

// claimed is a position as a client reports it, and false if it has none yet.
// One that is no position is of no known epoch.
func claimed(id string) (from mark, ok bool) {
	if id == "" {
		return mark{}, false
	}
	epoch, offset, valid := parseMessageID(id)
	if !valid {
		epoch, offset = "?", 1
	}
	return mark{epoch: epoch, offset: offset, at: time.Now()}, true
}

func (s *subscription) tellReady(shard *hubShard, id string, resumed bool, who *identity) {
	c := control{Type: "ready", Topic: s.topic, ID: id}
	if who != nil {
		c.Member = s.client.hub.presence.idFor(shard, who, s)
	}
	if s.options.resume != "" || s.claim != nil {
		c.Resumed = &resumed
	}
	s.client.enqueue(newFrame(c.onKey(s.key, s.options.envelope)))
}

// fill queues what a subscriber is behind, as far as the queue has room. What
// is left follows when the queue was written. The shard's lock is held.
func (h *hub) fill(shard *hubShard, s *subscription) {
	b := s.behind
	if b == nil {
		return
	}
	if now := time.Now().UnixNano(); s.grant != nil && !s.grant.fresh(now) {
		s.askAgain(now) // the decision will call again
		return
	}

	log := shard.logs[s.topic]
	if log == nil {
		// it keeps none any longer, or was dropped: from now on live
		nothing := b.offset == 0 && (s.claim == nil || h.history.neverHad(s.topic, b.epoch))
		if nothing || s.tellGap(b, "", 0, gapEvicted) {
			s.live(b)
		}
		return
	}
	if log.needs(b.epoch, b.offset) {
		if !b.unread {
			h.history.loads.add(s) // which calls again
			return
		}
		before := log.inMemory()
		epoch := log.epoch
		if len(log.entries) > 0 {
			epoch = log.entries[0].epoch
		}
		if !s.client.hasRoom() || !s.tellGap(b, epoch, before, gapUnread) {
			return
		}
		b.epoch, b.offset = epoch, before-1
	}
	if b.epoch == "" { // of a replay that could not know it
		b.epoch = log.epoch
		if at := log.at(b.offset + 1); at != nil {
			b.epoch = at.epoch
		}
	}

	// Where the queue has no room for something, the cursor stays before it: as
	// something is queued then, there will be a refill.
	entries := log.entries // of a position that it does not know, all
	if log.knows(b.epoch) {
		entries = log.after(b.epoch, b.offset)
	}
	for _, e := range entries {
		if !s.client.hasRoom() || !h.tellMissing(s, log, e.epoch, e.offset) {
			return
		}
		if !s.client.is(e.message.Except) {
			if !s.client.enqueue(e.frame(s.group.event, s.options.envelope)) {
				return
			}
			b.replayed++
		}
		b.offset = e.offset
	}
	if h.tellMissing(s, log, log.epoch, log.last+1) {
		s.live(b)
	}
}

// loaded goes on with a subscription whose topic was read from the disk, or
// could not be.
func (h *hub) loaded(s *subscription, err error) {
	shard := h.shard(s.topic)
	shard.mu.Lock()
	if s.group != nil && s.behind != nil {
		s.behind.unread = err != nil
		h.fill(shard, s)
		h.presence.retry(shard, s)
	}
	shard.mu.Unlock()
}

// tellMissing moves the cursor to right before a message, and tells of what is
// missing in between. It reports false if the queue has no room for that.
func (h *hub) tellMissing(s *subscription, log *topicLog, epoch string, offset uint64) bool {
	b := s.behind
	reason := ""
	switch linked := log.linked(b.epoch, epoch); {
	case !linked && log.knows(b.epoch):
		reason = gapEpoch // the server was not stopped properly in between
	case !linked && log.ended != "":
		reason = log.ended
	case !linked && (b.offset > 0 || b.flushed.offset > 0 || s.claim != nil):
		reason = gapEpoch // of another copy of the data, for all that is known
		if log.chain.has(b.epoch) {
			reason = gapEvicted // of a life of the topic that was dropped
		}
	case b.offset >= offset:
		reason = gapEpoch // a position that was never reached
	case b.offset+1 < offset && b.slow:
		reason = gapSlow
	case b.offset+1 < offset:
		reason = gapExpired
	}
	if reason != "" && !s.tellGap(b, epoch, offset, reason) {
		return false
	}
	b.epoch, b.offset = epoch, offset-1
	if reason != "" && s.position != nil {
		// so that a gap is told once (or again, right after a reconnect)
		s.position.told(s, mark{epoch: b.epoch, offset: b.offset, at: time.Now()}, h.overlap)
	}
	return true
}

// live ends the cursor.
func (s *subscription) live(b *cursor) {
	s.behind = nil
	s.client.behind.Add(-1)
	if b.resumed && !b.gap && s.options.envelope {
		s.client.enqueue(newFrame(control{Type: "recovered", Topic: s.topic, Count: &b.replayed}.onKey(s.key, true)))
	}
}

// tellGap tells that messages before that one are missing. Their number is only
// known within an epoch. It reports false if the queue has no room.
func (s *subscription) tellGap(b *cursor, epoch string, offset uint64, reason string) bool {
	c := control{
		Type: "gap", Topic: s.topic, Code: codeGap, Reason: reason,
		Message: "Some messages of this topic are not available any more.",
		From:    messageID(b.epoch, b.offset),
	}
	// of other reasons it is not known whether there was anything
	certain := reason == gapExpired || reason == gapSlow || reason == gapUnread
	if b.flushed.epoch != "" && epoch != "" {
		certain = certain && compareMarks(b.flushed, mark{epoch: epoch, offset: max(offset, 1) - 1}) < 0
	}
	c.Certain = &certain
	if epoch != "" {
		c.To = messageID(epoch, offset)
	}
	if (epoch == b.epoch || b.offset == 0 && reason == gapExpired) && b.offset < offset {
		count := int(offset - b.offset - 1)
		c.Count = &count
	}
	if !s.client.enqueue(newFrame(c.onKey(s.key, s.options.envelope))) {
		return false
	}
	b.gap = true
	return true
}

// fallBehind makes a subscriber whose queue is full read from the log, from
// that entry on. It reports false if there is none. The shard's lock is held.
func (s *subscription) fallBehind(e *entry) bool {
	if e == nil || e.offset == 0 {
		return false
	}
	if held := s.takeHeld(); len(held) > 0 {
		e = held[0].entry
		if e == nil || e.offset == 0 {
			return false
		}
	}
	s.behind = &cursor{epoch: e.epoch, offset: e.offset - 1, slow: true}
	s.client.behind.Add(1)
	return true
}

// refill goes on with a subscription that is behind.
func (h *hub) refill(s *subscription) {
	shard := h.shard(s.topic)
	shard.mu.Lock()
	defer shard.mu.Unlock()

	if s.group != nil {
		h.fill(shard, s)
		h.presence.retry(shard, s)
	}
}
