package topics

import (
	"container/list"
	"crypto/sha256"
	"encoding/hex"
	"sync"
	"time"

	"github.com/pocketbase/pocketbase/core"
)

// position is how far a subscriber with the resume option has come. It stays
// for a while after the connection has ended.
type position struct {
	id      string // in the store
	used    *list.Element
	expires time.Time // zero while a subscription holds it; guarded by the store

	mu    sync.Mutex
	holds *subscription // the one that writes it

	// What was flushed lately is not certainly received: a network that is
	// gone takes everything for a while. The marks are in time order; the first
	// is the newest that is old enough to be certain.
	marks []mark
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

	if p.holds != s {
		return // another connection goes on from here
	}
	if n := len(p.marks); n > 0 && p.marks[n-1].epoch == m.epoch && p.marks[n-1].offset >= m.offset {
		return // of an earlier flush of two keys that were mixed
	}
	p.add(m, overlap)
}

// add expects p.mu to be held.
func (p *position) add(m mark, overlap time.Duration) {
	// two marks within an eighth of the overlap are as good as the later one
	if n := len(p.marks); n > 1 && m.at.Sub(p.marks[n-2].at) < overlap/8 {
		p.marks[n-1] = m
	} else {
		p.marks = append(p.marks, m)
	}
	p.settle(m.at, overlap)
}

// settle drops the marks before the newest certain one.
func (p *position) settle(now time.Time, overlap time.Duration) {
	certain := 0
	for i, m := range p.marks {
		if now.Sub(m.at) >= overlap {
			certain = i
		}
	}
	p.marks = p.marks[certain:]
}

// take makes s the one that writes the position, and returns how far it is
// certain. It reports false for a position that was never written.
func (p *position) take(s *subscription, overlap time.Duration) (mark, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()

	p.holds = s
	if len(p.marks) == 0 {
		return mark{}, false
	}
	p.settle(time.Now(), overlap)
	p.marks = p.marks[:1] // the later ones were of another connection
	return p.marks[0], true
}

// start is where a subscriber comes in for the first time, or after a gap.
func (p *position) start(s *subscription, m mark) {
	p.mu.Lock()
	defer p.mu.Unlock()

	if p.holds == s {
		p.marks = []mark{m}
	}
}

// certain is the mark to resume from.
func (p *position) certain(overlap time.Duration) (mark, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()

	if len(p.marks) == 0 {
		return mark{}, false
	}
	p.settle(time.Now(), overlap)
	return p.marks[0], true
}

// positions are all of them, in memory and maybe on the disk.
type positions struct {
	disk    *disk // nil: in memory only
	keep    time.Duration
	overlap time.Duration
	max     int

	mu    sync.Mutex
	byID  map[string]*position
	order *list.List // *position, the most recently used first
}

func newPositions(disk *disk, config Config) *positions {
	return &positions{
		disk:    disk,
		keep:    config.ResumeFor,
		overlap: config.ResumeOverlap,
		max:     config.MaxPositions,
		byID:    map[string]*position{},
		order:   list.New(),
	}
}

// positionID is where the position of a subscription is kept. The auth is
// part of it, so that the resume option of somebody else is worth nothing.
func positionID(auth credentials, topic, resume string) string {
	sum := sha256.Sum256([]byte(auth.collection + "\x00" + auth.id + "\x00" + topic + "\x00" + resume))
	return hex.EncodeToString(sum[:])
}

// open returns the position with that id. If there is none, it is new, and the
// disk knows of it with the topic's head before open returns: so the server
// does not forget it when it is killed. No lock is held.
func (ps *positions) open(app core.App, id string, head mark) (*position, error) {
	if p := ps.find(id); p != nil {
		return p, nil
	}

	p := &position{id: id}
	if ps.disk != nil {
		saved, ok, err := ps.disk.position(app, id)
		if err != nil {
			return nil, err
		}
		if ok {
			p.marks = []mark{{epoch: saved.epoch, offset: saved.offset}}
		} else {
			ps.disk.commit(savedPosition{id: id, epoch: head.epoch, offset: head.offset, expires: time.Now().Add(ps.keep)})
		}
	}

	ps.mu.Lock()
	defer ps.mu.Unlock()

	if other := ps.byID[id]; other != nil {
		return other, nil
	}
	ps.byID[id] = p
	p.used = ps.order.PushFront(p)
	ps.evict()
	return p, nil
}

// find returns nil for a position that has expired.
func (ps *positions) find(id string) *position {
	ps.mu.Lock()
	defer ps.mu.Unlock()

	p := ps.byID[id]
	if p == nil {
		return nil
	}
	if !p.expires.IsZero() && time.Now().After(p.expires) {
		ps.remove(p)
		return nil
	}
	p.expires = time.Time{}
	ps.order.MoveToFront(p.used)
	return p
}

// release lets the position expire, unless another subscription has it.
func (ps *positions) release(p *position, s *subscription) {
	p.mu.Lock()
	held := p.holds == s
	if held {
		p.holds = nil
	}
	p.mu.Unlock()
	if !held {
		return
	}

	ps.mu.Lock()
	p.expires = time.Now().Add(ps.keep)
	ps.mu.Unlock()
	ps.save(p)
}

// save puts a position on the disk, so that the server knows of it after an
// unclean stop.
func (ps *positions) save(p *position) {
	if ps.disk == nil {
		return
	}
	if m, ok := p.certain(ps.overlap); ok {
		ps.disk.save(savedPosition{id: p.id, epoch: m.epoch, offset: m.offset, expires: time.Now().Add(ps.keep)})
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
		if !ok || !p.expires.IsZero() && now.After(p.expires) {
			continue
		}
		expires := p.expires
		if expires.IsZero() {
			expires = now.Add(ps.keep)
		}
		saved = append(saved, savedPosition{id: id, epoch: m.epoch, offset: m.offset, expires: expires})
	}
	return saved
}

// sweep drops what has expired.
func (ps *positions) sweep(now time.Time) {
	ps.mu.Lock()
	defer ps.mu.Unlock()

	for _, p := range ps.byID {
		if !p.expires.IsZero() && now.After(p.expires) {
			ps.remove(p)
		}
	}
}

// evict expects ps.mu to be held.
func (ps *positions) evict() {
	for ps.order.Len() > ps.max {
		ps.remove(ps.order.Back().Value.(*position))
	}
}

// remove expects ps.mu to be held.
func (ps *positions) remove(p *position) {
	delete(ps.byID, p.id)
	ps.order.Remove(p.used)
}
