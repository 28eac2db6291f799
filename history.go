package topics

import (
	"cmp"
	"container/list"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/security"
)

// topicLog is the history of one topic, guarded by its shard's lock.
//
// An epoch is the life of a log: its offsets count on without a hole. The
// entries may reach back into the epoch before an unclean stop of the server,
// after which messages may be missing; the offsets go on in a new epoch. A log
// that was evicted starts at 1 again. Later epochs have greater names, so
// positions are ordered by epoch and offset.
type topicLog struct {
	epoch string
	last  uint64 // the newest offset, 0 for none

	// ended says what was the end of the epoch before
	ended string

	// entries are consecutive up to last
	entries []*entry
	bytes   int

	used *list.Element // in history.order
}

func newTopicLog(ended string) *topicLog {
	return &topicLog{epoch: newEpoch(), ended: ended}
}

// newEpoch returns a name that is greater than all before, by the clock.
func newEpoch() string {
	now := strconv.FormatInt(time.Now().UnixMilli(), 36) // of 8 letters until 2059
	return now + security.RandomStringWithAlphabet(4, "0123456789abcdefghijklmnopqrstuvwxyz")
}

// first is the oldest offset that is there, or the next one.
func (l *topicLog) first() uint64 { return l.last + 1 - uint64(len(l.entries)) }

func (l *topicLog) append(e *entry, r retention) {
	l.last++
	e.epoch, e.offset = l.epoch, l.last
	l.entries = append(l.entries, e)
	l.bytes += e.size()
	l.prune(r, e.message.Time)
}

// prune drops what is beyond the bounds. The newest message always fits.
func (l *topicLog) prune(r retention, now time.Time) {
	drop := 0
	for drop < len(l.entries) {
		left := len(l.entries) - drop
		e := l.entries[drop]
		expired := r.age > 0 && now.Sub(e.message.Time) >= r.age
		if !expired && left <= r.messages && (l.bytes <= r.bytes || left == 1) {
			break
		}
		l.bytes -= e.size()
		drop++
	}
	if drop == 0 {
		return
	}
	clear(l.entries[:drop])
	l.entries = l.entries[drop:]
	if len(l.entries) == 0 || cap(l.entries) > 4*len(l.entries)+64 {
		l.entries = slices.Clone(l.entries)
	}
}

// after returns the entries that come after a position: all of them, if the
// log knows of no such position. (A server's clock may have gone back.)
func (l *topicLog) after(epoch string, offset uint64) []*entry {
	if epoch > l.epoch || epoch == l.epoch && offset > l.last {
		return l.entries
	}
	i, _ := slices.BinarySearchFunc(l.entries, entry{epoch: epoch, offset: offset + 1}, func(e *entry, at entry) int {
		return cmp.Or(strings.Compare(e.epoch, at.epoch), cmp.Compare(e.offset, at.offset))
	})
	return l.entries[i:]
}

// The positions of messages are written as epoch:offset.
func messageID(epoch string, offset uint64) string {
	return epoch + ":" + strconv.FormatUint(offset, 10)
}

func parseMessageID(id string) (epoch string, offset uint64, ok bool) {
	epoch, number, found := strings.Cut(id, ":")
	if !found || epoch == "" || strings.Trim(number, "0123456789") != "" {
		return "", 0, false
	}
	offset, err := strconv.ParseUint(number, 10, 64)
	return epoch, offset, err == nil
}

// history finds and bounds the logs of all topics. The logs themselves are in
// the hub's shards.
type history struct {
	hub       *hub
	disk      *disk // nil: in memory only
	positions *positions
	maxLogs   int
	messages  int // most per topic
	bytes     int // most per topic
	retention func(topic string) retention

	// the goroutine that drops what is too old, started with the first log
	start   sync.Once
	end     sync.Once
	stop    chan struct{}
	running sync.WaitGroup

	mu    sync.Mutex // taken while holding a shard's lock, never the other way
	order *list.List // topics, the most recently used first
}

func newHistory(hub *hub, config Config, retention func(topic string) retention) *history {
	h := &history{
		hub:       hub,
		maxLogs:   config.MaxTopics,
		messages:  config.HistoryMessages,
		bytes:     config.HistoryBytes,
		retention: retention,
		stop:      make(chan struct{}),
		order:     list.New(),
	}
	if !config.HistoryInMemory {
		h.disk = newDisk()
	}
	h.positions = newPositions(h.disk, config)
	hub.positions, hub.overlap = h.positions, config.ResumeOverlap
	return h
}

// close ends the goroutines and makes the disk ready for the next start.
func (h *history) close(app core.App) error {
	h.end.Do(func() { close(h.stop) })
	h.start.Do(func() {}) // it is not started any more
	h.running.Wait()
	if h.disk == nil {
		return nil
	}

	logs := map[string]*topicLog{}
	for i := range h.hub.shards {
		shard := &h.hub.shards[i]
		shard.mu.Lock()
		for topic, l := range shard.logs {
			logs[topic] = &topicLog{epoch: l.epoch, last: l.last}
		}
		shard.mu.Unlock()
	}
	return h.disk.close(app, logs, h.positions.all())
}

// sweepEvery is how often expired messages and positions are dropped that
// nobody comes across.
const sweepEvery = time.Minute

func (h *history) run() {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()

	for {
		select {
		case <-h.stop:
			return
		case now := <-tick.C:
			h.sweep(now)
			h.positions.sweep(now)
			if h.disk != nil {
				h.disk.add(diskWrite{expire: now})
			}
		}
	}
}

// open makes sure that the topic has a log, which may have to be read from
// the disk. It is called before the topic's lock is taken.
func (h *history) open(app core.App, topic string, r retention) error {
	h.start.Do(func() { h.running.Go(h.run) })

	shard := h.hub.shard(topic)
	shard.mu.Lock()
	l, taken := shard.logs[topic], shard.taken
	if l != nil {
		h.touch(l)
	}
	shard.mu.Unlock()
	if l != nil {
		return nil
	}

	loaded := newTopicLog(gapEvicted)
	if h.disk != nil {
		var err error
		if loaded, err = h.disk.load(app, topic); err != nil {
			return err
		}
	}
	loaded.prune(r, time.Now())

	shard.mu.Lock()
	// not if it was there meanwhile and is gone again: what was loaded is older
	if shard.logs[topic] == nil && shard.taken == taken {
		h.put(shard, topic, loaded)
	}
	shard.mu.Unlock()

	h.evict()
	return nil
}

// put expects the shard's lock to be held.
func (h *history) put(shard *hubShard, topic string, l *topicLog) {
	shard.logs[topic] = l
	h.mu.Lock()
	l.used = h.order.PushFront(topic)
	h.mu.Unlock()
}

func (h *history) touch(l *topicLog) {
	h.mu.Lock()
	h.order.MoveToFront(l.used)
	h.mu.Unlock()
}

// evict drops the logs that were not used for the longest time.
func (h *history) evict() {
	for {
		h.mu.Lock()
		if h.order.Len() <= h.maxLogs {
			h.mu.Unlock()
			return
		}
		topic := h.order.Back().Value.(string)
		h.mu.Unlock()

		h.drop(topic)
	}
}

func (h *history) drop(topic string) {
	shard := h.hub.shard(topic)
	shard.mu.Lock()
	defer shard.mu.Unlock()

	h.remove(shard, topic)
}

// remove expects the shard's lock to be held.
func (h *history) remove(shard *hubShard, topic string) {
	l := shard.logs[topic]
	if l == nil {
		return
	}
	h.takeOut(shard, topic, l)
	if h.disk != nil {
		h.disk.forget(topic)
	}
}

// takeOut leaves the disk as it is.
func (h *history) takeOut(shard *hubShard, topic string, l *topicLog) {
	delete(shard.logs, topic)
	shard.taken++
	h.mu.Lock()
	h.order.Remove(l.used)
	h.mu.Unlock()
}

// keep appends the message to the topic's log. The shard's lock is held.
func (h *history) keep(shard *hubShard, e *entry, r retention) {
	topic := e.message.Topic
	l := shard.logs[topic]
	if l == nil {
		// evicted since it was opened, or it could not be read
		l = newTopicLog(gapEvicted)
		h.put(shard, topic, l)
		if h.disk != nil {
			h.disk.forget(topic)
		}
	} else {
		h.touch(l)
	}
	l.append(e, r)
	if h.disk != nil {
		h.disk.write(e, l.first())
	}
}

// sweep drops what is too old in topics that nobody publishes to.
func (h *history) sweep(now time.Time) {
	for i := range h.hub.shards {
		shard := &h.hub.shards[i]
		shard.mu.Lock()
		topics := make([]string, 0, len(shard.logs))
		for topic := range shard.logs {
			topics = append(topics, topic)
		}
		shard.mu.Unlock()

		for _, topic := range topics {
			r := h.retention(topic)
			if r.keeps() && r.age == 0 {
				continue
			}
			if !r.keeps() {
				h.drop(topic) // its rule keeps none any more
				continue
			}
			shard.mu.Lock()
			if l := shard.logs[topic]; l != nil {
				had := len(l.entries)
				l.prune(r, now)
				if h.disk != nil && len(l.entries) < had {
					h.disk.pruned(topic, l.first())
				}
			}
			shard.mu.Unlock()
		}
	}
}

// openHistory makes the topic's log and the subscriber's position ready to be
// read without a database. If that fails they are new, and the log says so.
func (p *Plugin) openHistory(app core.App, topic string, options subscribeOptions, auth credentials) *position {
	r := p.retentionOf(topic)
	if !r.keeps() {
		return nil
	}
	if err := p.history.open(app, topic, r); err != nil {
		p.logHistoryError(app, topic, err)
	}
	if options.resume == "" {
		return nil
	}
	position, err := p.history.positions.open(app, positionID(auth, topic, options.resume), p.hub.head(topic))
	if err != nil {
		p.logHistoryError(app, topic, err)
	}
	return position
}

// openDisk is called when the process starts to serve: another one, such as a
// command beside the server, leaves the disk alone.
func (p *Plugin) openDisk(app core.App) {
	if p.history.disk == nil {
		return
	}
	left, err := p.history.disk.prepare(app)
	if err != nil {
		app.Logger().Error("Failed to open the histories of topics: they are in memory only", "error", err.Error())
		return
	}
	p.presence.restore(left)
	// what was sent before is not part of the disk's logs
	for i := range p.hub.shards {
		shard := &p.hub.shards[i]
		shard.mu.Lock()
		for topic, l := range shard.logs {
			p.history.takeOut(shard, topic, l)
		}
		shard.mu.Unlock()
	}
}

func (p *Plugin) logHistoryError(app core.App, topic string, err error) {
	if p.logs.allow("history " + err.Error()) {
		app.Logger().Error("Failed to read the history of a topic", "topic", topic, "error", err.Error())
	}
}
