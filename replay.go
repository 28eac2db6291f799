package topics

import "time"

// The reasons of a gap.
const (
	gapExpired = "expired" // older than the history keeps
	gapEvicted = "evicted" // the topic's history was dropped
	gapEpoch   = "epoch"   // the server was not stopped properly
	gapSlow    = "slow"    // the client read too slowly
)

// cursor is where a subscriber reads the topic's log, because it has just come
// or cannot keep up. Live messages pass it by: they are in the log too. Once
// it has reached the end, under the topic's lock, it is live: so there is no
// hole, no repetition and no other order between replay and live.
type cursor struct {
	epoch string
	next  uint64

	slow     bool // it was live before
	resumed  bool // recovered is sent at the end
	replayed int
	gap      bool // a gap was told
}

// enter is the beginning of a subscription. The shard's lock is held.
func (h *hub) enter(shard *hubShard, s *subscription) {
	log := shard.logs[s.topic]
	if log == nil && s.position == nil {
		if s.options.envelope {
			s.tellReady("", false)
		}
		return
	}

	var (
		head     mark
		from     mark
		resumed  bool
		isLogged = log != nil
	)
	if isLogged {
		head = mark{epoch: log.epoch, offset: log.last, at: time.Now()}
	}
	if s.position != nil {
		from, resumed = s.position.take(s, h.overlap)
	}

	switch {
	case resumed:
		s.behind = &cursor{epoch: from.epoch, next: from.offset + 1, resumed: true}
	case isLogged:
		first := max(log.last+1, uint64(s.options.replay)+1) - uint64(s.options.replay)
		s.behind = &cursor{epoch: log.epoch, next: max(first, log.first())}
		from = mark{epoch: log.epoch, offset: s.behind.next - 1, at: head.at}
		if s.position != nil {
			s.position.start(s, from)
			h.positions.save(s.position)
		}
	}
	if s.behind != nil {
		s.client.behind.Add(1)
	}
	if s.options.envelope {
		id := ""
		if from.epoch != "" {
			id = messageID(from.epoch, from.offset)
		}
		s.tellReady(id, resumed)
	}
	h.fill(shard, s)
}

func (s *subscription) tellReady(id string, resumed bool) {
	c := control{Type: "ready", Topic: s.topic, ID: id}
	if s.options.resume != "" {
		c.Resumed = &resumed
	}
	s.client.enqueue(newFrame(c.onKey(s.key, s.options.envelope)))
}

// fill queues what a subscriber is behind, as far as the queue has room. What
// is left follows when the queue was written. The shard's lock is held.
func (h *hub) fill(shard *hubShard, s *subscription) {
	b := s.behind
	if b == nil || s.grant != nil && !s.grant.fresh(time.Now().UnixNano()) {
		return // the decision will call again
	}

	log := shard.logs[s.topic]
	if log == nil {
		// it keeps none any more, or was evicted: from now on live
		s.tellGap(b, control{From: messageID(b.epoch, b.next-1), Reason: gapEvicted})
		s.live(b)
		return
	}

	if b.epoch != log.epoch && (b.epoch != log.before || b.next < log.first()) {
		reason := gapEvicted
		if log.before != "" {
			reason = gapEpoch
		}
		s.tellGap(b, control{From: messageID(b.epoch, b.next-1), To: messageID(log.epoch, log.first()), Reason: reason})
		b.epoch, b.next = log.epoch, log.first()
		h.passed(s, b)
	}
	if b.next < log.first() {
		reason := gapExpired
		if b.slow {
			reason = gapSlow
		}
		count := int(log.first() - b.next)
		s.tellGap(b, control{From: messageID(b.epoch, b.next-1), To: messageID(log.epoch, log.first()), Count: &count, Reason: reason})
		b.next = log.first()
		h.passed(s, b)
	}

	for _, e := range log.from(b.next) {
		if b.epoch != log.epoch && e.offset >= log.start {
			s.endEpoch(b, log)
		}
		if !s.client.hasRoom() {
			return
		}
		if e.message.Except != s.client.id {
			s.client.enqueue(frame{event: s.group.event, data: e.line(s.options.envelope), entry: e})
			b.replayed++
		}
		b.next = e.offset + 1
	}
	if b.epoch != log.epoch {
		s.endEpoch(b, log)
	}
	if b.next > log.last+1 {
		b.next = log.last + 1
	}
	s.live(b)
}

// passed notes a gap that was told. (A quick reconnect may tell it again.)
func (h *hub) passed(s *subscription, b *cursor) {
	if s.position != nil {
		s.position.flushed(s, mark{epoch: b.epoch, offset: b.next - 1, at: time.Now()}, h.overlap)
	}
}

// endEpoch tells that between the epoch before and this one messages may be
// missing.
func (s *subscription) endEpoch(b *cursor, log *topicLog) {
	s.tellGap(b, control{From: messageID(b.epoch, b.next-1), To: messageID(log.epoch, log.start), Reason: gapEpoch})
	b.epoch = log.epoch
}

// live ends the cursor.
func (s *subscription) live(b *cursor) {
	s.behind = nil
	s.client.behind.Add(-1)
	if b.resumed && !b.gap && s.options.envelope {
		s.client.enqueue(newFrame(control{Type: "recovered", Topic: s.topic, Count: &b.replayed}.onKey(s.key, true)))
	}
}

func (s *subscription) tellGap(b *cursor, c control) {
	b.gap = true
	c.Type, c.Topic, c.Code = "gap", s.topic, codeGap
	c.Message = "Some messages of this topic are not available any more."
	s.client.enqueue(newFrame(c.onKey(s.key, s.options.envelope)))
}

// fallBehind makes a subscriber whose queue is full read from the log, from
// that entry on. It reports false if there is none. The shard's lock is held.
func (s *subscription) fallBehind(e *entry) bool {
	if e == nil || e.offset == 0 {
		return false
	}
	if len(s.held) > 0 {
		e = s.held[0].entry
		s.held, s.heldBytes = nil, 0
		if e == nil || e.offset == 0 {
			return false
		}
	}
	s.behind = &cursor{epoch: e.epoch, next: e.offset, slow: true}
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
	}
}
