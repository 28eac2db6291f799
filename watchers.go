package topics

import (
	"slices"
	"time"
)

// watcher is a subscription with the presence option, as the holder of the
// grant that lets it see the members.
type watcher subscription

// enlist makes s receive the topic's presence, or makes it do so by another
// grant. Without one it is Go code that has subscribed the
// client. The shard's lock is held, and a call of show follows.
func (p *presence) enlist(shard *hubShard, s *subscription, g *grant) {
	s.watch = g
	if s.watching {
		return
	}
	s.watching = true
	tm := p.members(shard, s.topic)
	tm.watchers[s] = struct{}{}
	s.due = true
}

// show lets a watcher who has just come have the snapshot: now, unless there are
// changes whose turn comes. The shard's lock is held.
func (p *presence) show(shard *hubShard, s *subscription) {
	if s.watching {
		p.changed(shard, shard.members[s.topic])
		p.retry(shard, s)
	}
}

// unwatch is the end of it. The shard's lock is held.
func (p *presence) unwatch(shard *hubShard, s *subscription) {
	if !s.watching {
		return
	}
	s.watching, s.watch, s.due = false, nil, false
	s.press(false)
	tm := shard.members[s.topic]
	delete(tm.watchers, s)
	tm.tidy(shard)
}

// tidy forgets the members of a topic that nobody needs.
func (tm *topicMembers) tidy(shard *hubShard) {
	if len(tm.byKey) == 0 && len(tm.guests) == 0 && len(tm.watchers) == 0 && len(tm.changed) == 0 && !tm.queued {
		delete(shard.members, tm.topic)
	}
}

// press makes the client's writer call catchUp when there is room.
func (s *subscription) press(on bool) {
	if s.pressed == on {
		return
	}
	s.pressed = on
	if on {
		s.client.behind.Add(1)
	} else {
		s.client.behind.Add(-1)
	}
}

// mayShow reports whether s may be sent something of the members now. If not,
// somebody calls catchUp later.
func (s *subscription) mayShow(now int64) bool {
	return s.behind == nil && len(s.held) == 0 &&
		(s.grant == nil || s.grant.fresh(now)) && (s.watch == nil || s.watch.fresh(now))
}

// changed flushes what has changed, now or when it is the topic's turn. The
// shard's lock is held.
func (p *presence) changed(shard *hubShard, tm *topicMembers) {
	if tm.queued || len(tm.changed) == 0 {
		return
	}
	now := time.Now()
	next := tm.flushed.Add(flushPeriod)
	if !next.After(now) {
		p.flush(shard, tm, now)
		return
	}

	tm.queued = true
	p.mu.Lock()
	p.at(next).flush = tm.topic
	p.mu.Unlock()
	p.wakeUp()
}

func (p *presence) flushQueued(topic string) {
	shard := p.hub.shard(topic)
	shard.mu.Lock()
	defer shard.mu.Unlock()

	if tm := shard.members[topic]; tm != nil && tm.queued {
		tm.queued = false
		p.flush(shard, tm, time.Now())
	}
}

// flush tells the watchers, the disk and the app's handlers what has changed.
// The shard's lock is held.
func (p *presence) flush(shard *hubShard, tm *topicMembers, now time.Time) {
	c := tm.takeChanges()
	tm.flushed = now
	p.save(tm.topic, c)
	p.call(tm.topic, c)

	before := tm.counting
	tm.counting = p.counts(tm)
	var lines []dataLine
	if len(tm.watchers) > 0 && !tm.counting {
		lines = c.lines(tm)
	}
	// what all know is another thing when the list comes or goes, or their
	// number without it
	all := tm.counting != before || tm.counting && len(tm.byKey) != tm.told
	tm.told = len(tm.byKey)
	for s := range tm.watchers {
		s.due = s.due || all || len(lines) > 0 && !s.mayShow(now.UnixNano())
		if s.due {
			p.catchUp(tm, s, now)
			continue
		}
		for _, line := range lines {
			if !s.client.enqueue(frame{event: s.group.event, data: line}) {
				s.due = true
				p.catchUp(tm, s, now)
				break
			}
		}
	}
	tm.tidy(shard)
}

// counts reports whether a topic has so many members that watchers get their
// number only. It takes a tenth less to end that.
func (p *presence) counts(tm *topicMembers) bool {
	limit, size := p.limit, p.bytes
	if tm.counting {
		limit, size = limit-limit/10, size-size/10
	}
	return len(tm.byKey) > limit || tm.size > size
}

// catchUp sends the snapshot to a watcher that waits for it. The shard's lock
// is held.
func (p *presence) catchUp(tm *topicMembers, s *subscription, now time.Time) {
	if !s.due || len(tm.changed) > 0 {
		return // a flush comes
	}
	if !s.mayShow(now.UnixNano()) {
		s.askAgain(now.UnixNano()) // a decision comes, or the history's end
		return
	}
	snapshot := frame{event: s.group.event, data: tm.snapshotLine()}
	if !s.client.enqueue(snapshot) {
		// once more, because the writer may have come to the end just before
		s.press(true)
		if !s.client.enqueue(snapshot) {
			return
		}
	}
	s.due = false
	s.press(false)
}

// retry is catchUp for a subscription that may be a watcher. The shard's lock
// is held.
func (p *presence) retry(shard *hubShard, s *subscription) {
	if !s.watching {
		return
	}
	s.press(false)
	p.catchUp(shard.members[s.topic], s, time.Now())
}

// presenceHead is a presence event without its members. A presence that has
// none of them at all gives the number only.
type presenceHead struct {
	Type  string `json:"type"`
	Topic string `json:"topic"`
	Count int    `json:"count"`
}

func (h presenceHead) line(members [][]byte) dataLine {
	raw := mustMarshal(h)
	if members == nil {
		return newDataLine(raw)
	}
	raw = append(raw[:len(raw)-1], `,"members":[`...)
	for i, m := range members {
		if i > 0 {
			raw = append(raw, ',')
		}
		raw = append(raw, m...)
	}
	return newDataLine(append(raw, "]}"...))
}

func (tm *topicMembers) snapshotLine() dataLine {
	if tm.snapshot == nil {
		head := presenceHead{Type: "presence", Topic: tm.topic, Count: len(tm.byKey)}
		if tm.counting {
			tm.snapshot = head.line(nil)
		} else {
			tm.snapshot = head.line(jsonOf(tm.sorted()))
		}
	}
	return tm.snapshot
}

func jsonOf(members []*member) [][]byte {
	list := make([][]byte, len(members))
	for i, m := range members {
		list[i] = m.json
	}
	return list
}

// memberID is how a leave names a member.
type memberID struct {
	ID         string `json:"id"`
	Collection string `json:"collection"`
}

// changes are what a flush tells, each in the order of the members' coming.
type changes struct {
	joined, updated, left []*member
}

func (tm *topicMembers) takeChanges() (c changes) {
	for key, change := range tm.changed {
		m := tm.byKey[key]
		switch {
		case m != nil && change.known:
			c.updated = append(c.updated, m)
		case m != nil:
			c.joined = append(c.joined, m)
		case change.known:
			c.left = append(c.left, change.member)
		}
	}
	tm.changed = map[memberKey]memberChange{} // one that was large stays so
	for _, list := range [][]*member{c.joined, c.updated, c.left} {
		slices.SortFunc(list, compareMembers)
	}
	return c
}

func (c changes) lines(tm *topicMembers) (lines []dataLine) {
	count := len(tm.byKey) - len(c.joined)
	add := func(kind string, members [][]byte) {
		if len(members) > 0 {
			lines = append(lines, presenceHead{Type: kind, Topic: tm.topic, Count: count}.line(members))
		}
	}
	gone := make([][]byte, len(c.left))
	for i, m := range c.left {
		gone[i] = mustMarshal(memberID{m.key.id, m.collection})
	}
	add("leave", gone)
	count += len(c.joined)
	add("join", jsonOf(c.joined))
	add("update", jsonOf(c.updated))
	return lines
}

// resume implements [holder].
func (w *watcher) resume(g *grant) {
	s := (*subscription)(w)
	h := s.client.hub
	shard := h.shard(s.topic)
	shard.mu.Lock()
	defer shard.mu.Unlock()

	if s.watch == g {
		h.presence.retry(shard, s)
	}
}

// revoke implements [holder]: the client does not see the members any more,
// and is told.
func (w *watcher) revoke(g *grant, marked uint64, o outcome) bool {
	s := (*subscription)(w)
	c := s.client

	c.subsMu.Lock()
	held := c.subs[s.key] == s && s.watch == g
	counts := g.denies(marked)
	if held && counts {
		c.unwatch(s)
		s.refused = true
	}
	c.subsMu.Unlock()

	if held && counts {
		c.tell(control{Type: "presence_revoked", Topic: s.topic, Code: codePresenceRevoked, Message: o.reason}.onKey(s.key, true))
	}
	return counts
}

// move implements [holder].
func (w *watcher) move(from, to *grant) {
	s := (*subscription)(w)
	c := s.client

	c.subsMu.Lock()
	moves := c.subs[s.key] == s && s.watch == from
	if moves {
		c.hub.watch(s, to)
		c.grants.hold(to, w)
		c.grants.drop(from, w)
	}
	c.subsMu.Unlock()

	if !moves {
		c.grants.release(to)
	}
}

// subscriptionKey implements [holder].
func (w *watcher) subscriptionKey() string { return w.key }

// guest implements [holder].
func (w *watcher) guest() owner { return w.client.guest }

// unwatch expects c.subsMu to be held.
func (c *client) unwatch(s *subscription) {
	g := s.watch
	c.hub.unwatch(s)
	if g != nil {
		c.grants.drop(g, (*watcher)(s))
	}
}

// rewatch takes over what a request has found out about the presence option of
// a subscription that stays. It expects c.subsMu to be held.
func (c *client) rewatch(s *subscription, a *admission) {
	switch {
	case a.watch != nil && s.watch == a.watch:
		c.grants.release(a.watch) // held already
	case a.watch != nil:
		old := s.watch
		c.hub.watch(s, a.watch)
		c.grants.hold(a.watch, (*watcher)(s))
		if old != nil {
			c.grants.drop(old, (*watcher)(s))
		}
		s.refused = false
	case a.refusal != nil:
		if s.watching {
			c.unwatch(s)
		}
		c.refuse(s, a.refusal)
	}
}

// refuse tells, once, that the members are not for this client. It expects
// c.subsMu to be held.
func (c *client) refuse(s *subscription, d *denial) {
	if !s.refused {
		s.refused = c.enqueue(newFrame(control{Type: "presence_denied", Topic: s.topic, Code: d.code, Message: d.message}.onKey(s.key, true)))
	}
}
