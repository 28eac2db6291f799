package topics

import (
	"cmp"
	"context"
	"sync"
)

// loadWorkers is how many topics are read from the disk at once.
const loadWorkers = 2

// loads reads histories from the disk for subscribers who have come to the
// beginning of what is in memory. They are behind, so nobody waits for it.
type loads struct {
	history *history

	running sync.WaitGroup

	mu      sync.Mutex // taken while holding a shard's lock, never the other way
	ctx     context.Context
	cancel  context.CancelFunc
	closed  bool
	waiting map[string]map[*subscription]struct{} // by topic
	queue   []string
	workers int
}

// add does not block. The shard's lock is held.
func (ls *loads) add(s *subscription) {
	ls.mu.Lock()
	defer ls.mu.Unlock()

	if ls.closed {
		return
	}
	if ls.waiting == nil {
		ls.waiting = map[string]map[*subscription]struct{}{}
		ls.ctx, ls.cancel = context.WithCancel(context.Background())
	}
	of := ls.waiting[s.topic]
	if of == nil {
		of = map[*subscription]struct{}{}
		ls.waiting[s.topic] = of
		ls.queue = append(ls.queue, s.topic)
	}
	of[s] = struct{}{}
	if ls.workers < loadWorkers {
		ls.workers++
		ls.running.Go(ls.work)
	}
}

func (ls *loads) work() {
	for {
		topic, of, ok := ls.take()
		if !ok {
			return
		}
		var err error
		panicked := ls.history.guard.run("reading a history", func() {
			if err = ls.history.load(ls.ctx, topic); err != nil {
				ls.history.failed(topic, err)
			}
		})
		for s := range of {
			ls.history.hub.loaded(s, cmp.Or(err, panicked))
		}
	}
}

func (ls *loads) take() (topic string, of map[*subscription]struct{}, ok bool) {
	ls.mu.Lock()
	defer ls.mu.Unlock()

	if len(ls.queue) == 0 || ls.closed {
		ls.workers--
		return "", nil, false
	}
	topic, ls.queue = ls.queue[0], ls.queue[1:]
	of = ls.waiting[topic]
	delete(ls.waiting, topic)
	return topic, of, true
}

// close ends the reading and waits for it.
func (ls *loads) close() {
	ls.mu.Lock()
	ls.closed = true
	if ls.cancel != nil {
		ls.cancel()
	}
	ls.mu.Unlock()
	ls.running.Wait()
}

// diskWait is how long one request waits for the disk, for all that it needs.
type diskWait struct {
	ctx    context.Context
	cancel context.CancelFunc
	write  uint64 // of states, which should be committed
}

func newDiskWait(ctx context.Context) *diskWait {
	ctx, cancel := context.WithTimeout(ctx, diskPatience)
	return &diskWait{ctx: ctx, cancel: cancel}
}

// end waits for the write.
func (w *diskWait) end(d *disk) {
	defer w.cancel()
	if d != nil && w.write > 0 {
		d.waitForStates(w.ctx, w.write)
	}
}
