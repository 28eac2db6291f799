package topics

import (
	"container/list"
	"sync"
	"time"
)

const (
	// repeatFor is how long a repeated publish answers the first one's id.
	repeatFor = 5 * time.Minute

	// maxRepeats bounds the keys; the oldest go first.
	maxRepeats = 100_000

	// maxIdempotencyKey is the longest key, in bytes.
	maxIdempotencyKey = 128
)

// repeats knows the publishes that had an idempotency key.
type repeats struct {
	mu    sync.Mutex
	byKey map[repeatKey]*repeat
	order *list.List // *repeat, the oldest first
}

// repeatKey has the sender in it: nobody learns of the keys of others.
type repeatKey struct {
	collection, sender, topic, key string
}

type repeat struct {
	key  repeatKey
	at   time.Time
	done chan struct{} // closed when id or failed is set
	id   string
	sent bool
}

func newRepeats() *repeats {
	return &repeats{byKey: map[repeatKey]*repeat{}, order: list.New()}
}

// once calls send unless somebody has done so with the same key, for whom it
// waits. A send that failed does not count.
func (rs *repeats) once(key repeatKey, send func() (string, error)) (string, error) {
	for {
		r, first := rs.get(key)
		if first {
			return rs.send(r, send)
		}
		<-r.done
		if r.sent {
			return r.id, nil
		}
	}
}

func (rs *repeats) send(r *repeat, send func() (string, error)) (id string, err error) {
	err = errPanicked
	defer func() { rs.finish(r, id, err) }()

	id, err = send()
	return id, err
}

func (rs *repeats) get(key repeatKey) (r *repeat, first bool) {
	rs.mu.Lock()
	defer rs.mu.Unlock()

	now := time.Now()
	for e := rs.order.Front(); e != nil; e = rs.order.Front() {
		oldest := e.Value.(*repeat)
		if now.Sub(oldest.at) < repeatFor && rs.order.Len() < maxRepeats {
			break
		}
		rs.order.Remove(e)
		if rs.byKey[oldest.key] == oldest {
			delete(rs.byKey, oldest.key)
		}
	}

	if r := rs.byKey[key]; r != nil {
		return r, false
	}
	r = &repeat{key: key, at: now, done: make(chan struct{})}
	rs.byKey[key] = r
	rs.order.PushBack(r)
	return r, true
}

func (rs *repeats) finish(r *repeat, id string, err error) {
	rs.mu.Lock()
	r.id, r.sent = id, err == nil
	if err != nil && rs.byKey[r.key] == r {
		delete(rs.byKey, r.key)
	}
	rs.mu.Unlock()
	close(r.done)
}
