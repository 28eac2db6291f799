package topics

import (
	"container/heap"
	"container/list"
	"context"
	"crypto/sha256"
	"errors"
	"strings"
	"sync"
	"time"
)

const (
	// repeatFor is how long a repeated publish answers the first one's id.
	repeatFor = 5 * time.Minute

	// maxRepeats bounds the keys of all senders.
	maxRepeats = 100_000

	// maxIdempotencyKey is the longest key, in bytes.
	maxIdempotencyKey = 128
)

// repeats knows the publishes that had an idempotency key. A sender that has
// more keys than its limit loses its own oldest ones. When all senders together
// have too many, the sender with the most keys does, so that nobody can make the
// server forget the keys of others.
type repeats struct {
	limit int // keys of one sender, -1 for none

	mu      sync.Mutex
	byKey   map[repeatKey]*repeat
	order   list.List // sent *repeat of all, the oldest first
	senders map[owner]*repeatSender
	most    repeatSenders
	dropped uint64 // before their time
}

// repeatKey is a hash, so that nothing of a request is kept, of the sender, the
// topic and the key. The sender is part of it, so that nobody learns of the keys
// of others.
type repeatKey [sha256.Size]byte

func newRepeatKey(collection, sender, topic, key string) repeatKey {
	// the key is last: no other part has a zero byte
	return sha256.Sum256([]byte(strings.Join([]string{collection, sender, topic, key}, "\x00")))
}

// content is a hash of what was sent with a key.
type content [sha256.Size]byte

func contentOf(m Message) content {
	h := sha256.New()
	for _, part := range []string{m.Event, m.Except} {
		h.Write([]byte(part))
		h.Write([]byte{0})
	}
	h.Write(m.Data)
	return content(h.Sum(nil))
}

// errRepeatOther says that something else was sent with the same key.
var errRepeatOther = errors.New("topics: something else was sent with the same idempotency key")

// repeat is a publish. While it is being sent it is only in byKey, where the
// requests that send bound it.
type repeat struct {
	key  repeatKey
	sent content
	done chan struct{} // closed when the send has ended; nil afterwards
	at   time.Time     // when it was sent
	id   string

	inOrder  *list.Element
	sender   *repeatSender
	inSender *list.Element
}

// repeatSender has the sent keys of one owner.
type repeatSender struct {
	owner owner
	order list.List // *repeat, the oldest first
	index int       // in repeats.most
}

func newRepeats(limit int) *repeats {
	return &repeats{limit: limit, byKey: map[repeatKey]*repeat{}, senders: map[owner]*repeatSender{}}
}

// errRepeatInterrupted says that ctx has ended while another request was sending
// with the same key.
var errRepeatInterrupted = errors.New("topics: the request ended while another one was sending with the same idempotency key")

// once calls send unless somebody has done so with the same key, for whom it
// waits until ctx is done. A send that failed does not count. It returns
// [errRepeatOther] if what was sent is not the same.
func (rs *repeats) once(ctx context.Context, by owner, key repeatKey, what content, send func() (string, content, error)) (string, error) {
	for {
		r, first := rs.get(key)
		switch {
		case first:
			return rs.send(by, key, what, send)
		case r.done == nil && r.sent != what:
			return "", errRepeatOther
		case r.done == nil:
			return r.id, nil
		}
		wait := r.done
		select {
		case <-wait:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			return "", errRepeatInterrupted
		}
	}
}

func (rs *repeats) send(by owner, key repeatKey, what content, send func() (string, content, error)) (id string, err error) {
	err = errPanicked
	var sent content
	defer func() { rs.finish(by, key, id, sent, err) }()

	id, sent, err = send()
	if err == nil && sent != what {
		return "", errRepeatOther
	}
	return id, err
}

// sentWith returns what was sent with a key, if that is known.
func (rs *repeats) sentWith(key repeatKey) (sent content, known bool) {
	rs.mu.Lock()
	defer rs.mu.Unlock()

	r := rs.byKey[key]
	if r == nil || r.done != nil {
		return sent, false
	}
	return r.sent, true
}

// get returns a copy of what was sent with the key, or is being sent: then done
// is what to wait for. Otherwise the caller is the first one, and sends.
func (rs *repeats) get(key repeatKey) (r repeat, first bool) {
	rs.mu.Lock()
	defer rs.mu.Unlock()

	rs.expire(time.Now())
	if known := rs.byKey[key]; known != nil {
		return *known, false
	}
	rs.byKey[key] = &repeat{key: key, done: make(chan struct{})}
	return repeat{}, true
}

func (rs *repeats) finish(by owner, key repeatKey, id string, sent content, err error) {
	rs.mu.Lock()
	defer rs.mu.Unlock()

	r := rs.byKey[key]
	defer close(r.done)
	r.done = nil
	if err != nil {
		delete(rs.byKey, key)
		return
	}

	now := time.Now()
	rs.expire(now)
	r.id, r.sent, r.at = strings.Clone(id), sent, now
	s := rs.sender(by)
	if rs.limit >= 0 && by != "" && s.order.Len() >= rs.limit {
		rs.drop(s.oldest())
	} else if rs.order.Len() >= maxRepeats {
		rs.drop(rs.most[0].oldest())
	}
	s = rs.sender(by) // it may have lost its last one
	r.sender, r.inSender, r.inOrder = s, s.order.PushBack(r), rs.order.PushBack(r)
	heap.Fix(&rs.most, s.index)
}

func (rs *repeats) sender(by owner) *repeatSender {
	s := rs.senders[by]
	if s == nil {
		s = &repeatSender{owner: by}
		rs.senders[by] = s
		heap.Push(&rs.most, s)
	}
	return s
}

func (s *repeatSender) oldest() *repeat { return s.order.Front().Value.(*repeat) }

// expire forgets what is too old to count.
func (rs *repeats) expire(now time.Time) {
	for e := rs.order.Front(); e != nil; e = rs.order.Front() {
		oldest := e.Value.(*repeat)
		if now.Sub(oldest.at) < repeatFor {
			return
		}
		rs.remove(oldest)
	}
}

// drop forgets what would still count.
func (rs *repeats) drop(r *repeat) {
	rs.dropped++
	rs.remove(r)
}

func (rs *repeats) remove(r *repeat) {
	delete(rs.byKey, r.key)
	rs.order.Remove(r.inOrder)
	r.sender.order.Remove(r.inSender)
	if r.sender.order.Len() > 0 {
		heap.Fix(&rs.most, r.sender.index)
		return
	}
	heap.Remove(&rs.most, r.sender.index)
	delete(rs.senders, r.sender.owner)
}

// count returns how many keys are remembered, and how many were dropped.
func (rs *repeats) count() (keys int, dropped uint64) {
	rs.mu.Lock()
	defer rs.mu.Unlock()

	return rs.order.Len(), rs.dropped
}

// repeatSenders implement [heap.Interface], the one with the most keys first; of
// several the one with the oldest key.
type repeatSenders []*repeatSender

func (s repeatSenders) Len() int { return len(s) }

func (s repeatSenders) Less(i, j int) bool {
	a, b := s[i].order.Len(), s[j].order.Len()
	if a != b || a == 0 {
		return a > b
	}
	return s[i].oldest().at.Before(s[j].oldest().at)
}

func (s repeatSenders) Swap(i, j int) {
	s[i], s[j] = s[j], s[i]
	s[i].index, s[j].index = i, j
}

// Push implements [heap.Interface].
func (s *repeatSenders) Push(x any) {
	item := x.(*repeatSender)
	item.index = len(*s)
	*s = append(*s, item)
}

// Pop implements [heap.Interface].
func (s *repeatSenders) Pop() any {
	last := len(*s) - 1
	item := (*s)[last]
	(*s)[last] = nil
	*s = (*s)[:last]
	return item
}
