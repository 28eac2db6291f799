package topics

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pocketbase/pocketbase/core"
)

// history finds and bounds the logs of all topics. The logs themselves are in
// the hub's shards. A topic that keeps nothing has none, so that names alone
// cost nothing.
//
// The logs of all topics are in memory, at some hundred bytes each; their
// entries only of those that were used lately. Dropping entries from memory
// leaves them on the disk, if there is one.
type history struct {
	hub       *hub
	disk      *disk // nil: in memory only
	positions *positions
	chain     chain
	limits    historyLimits
	retention func(topic string) (retention, error)
	app       func() core.App
	failed    func(topic string, err error) // the disk could not be read
	guard     *guard

	loads loads

	// the goroutine that drops what is too old, started with the first log
	start   sync.Once
	end     sync.Once
	stop    chan struct{}
	running sync.WaitGroup

	unclean atomic.Bool // the stop before this start was not clean

	mu     sync.Mutex    // taken while holding a shard's lock, never the other way
	order  *list.List    // *topicLog, the most recently used first
	cached *list.List    // those with entries in memory, likewise
	bytes  int           // of all entries in memory
	kept   int           // of all that is kept
	begun  map[owner]int // topics
	sent   map[owner]int // bytes of what is kept

	// epoch is that of logs that begin. A topic that was dropped in it begins
	// another one: its offsets were given.
	epoch   string
	dropped map[string]droppedLog

	evicted uint64 // logs that were dropped for others
	refused uint64 // topics that were not begun
}

// diskShare is the part of the disk (or of the memory, where that is all) that
// the messages of one sender may take, as a divisor, and guestsShare that of all guests whose addresses say nothing.
// Beyond it their messages are refused.
const (
	diskShare   = 8
	guestsShare = 4
)

// droppedLog is why a topic has no log, and in which epoch that happened.
type droppedLog struct{ reason, epoch string }

// historyLimits are the fields of [Config] that bound histories.
type historyLimits struct {
	topics   int
	messages int // of a topic
	bytes    int // of a topic
	memory   int // bytes of all
	disk     int // bytes of all
	sender   int // topics of one sender, -1 for no limit
}

func newHistory(hub *hub, config Config) *history {
	h := &history{
		hub: hub,
		limits: historyLimits{
			topics:   config.MaxTopics,
			messages: config.HistoryMessages,
			bytes:    config.HistoryBytes,
			memory:   config.HistoryTotalBytes,
			disk:     config.HistoryDiskBytes,
			sender:   config.MaxTopicsPerSender,
		},
		stop:    make(chan struct{}),
		order:   list.New(),
		cached:  list.New(),
		begun:   map[owner]int{},
		sent:    map[owner]int{},
		dropped: map[string]droppedLog{},
	}
	h.epoch = h.chain.begin(true).name
	h.loads.history = h
	h.positions = newPositions(config)
	hub.history, hub.overlap = h, config.ResumeOverlap
	return h
}

// virtual is the position before the first message of a topic without a log.
func (h *history) virtual() mark {
	h.mu.Lock()
	defer h.mu.Unlock()

	return mark{epoch: h.epoch, at: time.Now()}
}

// neverHad reports whether a topic without a log had none since the beginning
// of an epoch either.
func (h *history) neverHad(topic, epoch string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()

	_, dropped := h.dropped[topic]
	return epoch == h.epoch && !dropped
}

// close ends the goroutines and makes the disk ready for the next start.
func (h *history) close(ctx context.Context, app core.App) error {
	h.end.Do(func() { close(h.stop) })
	h.start.Do(func() {}) // it is not started any more
	h.loads.close()
	waitFor(ctx, &h.running)
	if h.disk == nil {
		return nil
	}

	var heads []logHead
	h.eachLog(func(_ *hubShard, l *topicLog) { heads = append(heads, l.head()) })
	return h.disk.close(ctx, app, heads, h.positions.all())
}

// waitFor waits for a group, but no longer than ctx.
func waitFor(ctx context.Context, group *sync.WaitGroup) {
	done := make(chan struct{})
	go func() {
		group.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// eachLog calls visit for every log, with its shard's lock held.
func (h *history) eachLog(visit func(*hubShard, *topicLog)) {
	for i := range h.hub.shards {
		shard := &h.hub.shards[i]
		shard.mu.Lock()
		for _, l := range shard.logs {
			visit(shard, l)
		}
		shard.mu.Unlock()
	}
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
			_ = h.guard.run("reviewing the histories", func() { h.review(now) }) // it is logged
			h.positions.sweep(now)
		}
	}
}

// review applies the rules as they are now to all logs, in memory and on the
// disk. Those whose rule cannot be read stay as they are.
func (h *history) review(now time.Time) {
	for i := range h.hub.shards {
		shard := &h.hub.shards[i]
		shard.mu.Lock()
		topics := make([]string, 0, len(shard.logs))
		for topic := range shard.logs {
			topics = append(topics, topic)
		}
		shard.mu.Unlock()

		for _, topic := range topics {
			r, err := h.retention(topic)
			if err != nil {
				continue
			}
			shard.mu.Lock()
			if l := shard.logs[topic]; l != nil {
				h.apply(shard, l, r, now)
			}
			shard.mu.Unlock()
		}
	}
}

// apply expects the shard's lock to be held.
func (h *history) apply(shard *hubShard, l *topicLog, r retention, now time.Time) {
	if !r.keeps() {
		h.drop(shard, l, gapEvicted) // its rule keeps none any longer
		return
	}
	first, whole := l.first, l.whole()
	h.account(l, func() { l.prune(r, now) })
	if l.count() == 0 && now.Sub(l.newest) > h.positions.keep {
		h.drop(shard, l, gapExpired) // nobody has a position in it
		return
	}
	switch {
	case h.disk == nil:
	case !whole && r.age > 0:
		h.disk.addMessage(headWrite{head: l.head(), expired: now.Add(-r.age)})
	case l.first > first:
		h.disk.addMessage(headWrite{head: l.head()})
	}
}

// account keeps the sums over a change of a log. The shard's lock is held.
func (h *history) account(l *topicLog, change func()) {
	bytes, kept := l.bytes, l.kept
	change()

	h.mu.Lock()
	defer h.mu.Unlock()
	h.bytes += l.bytes - bytes
	h.kept += l.kept - kept
	for _, c := range l.charges {
		h.count(c.owner, c.bytes)
	}
	l.charges = l.charges[:0]
	switch {
	case len(l.entries) == 0 && l.cached != nil:
		h.cached.Remove(l.cached)
		l.cached = nil
	case len(l.entries) > 0 && l.cached == nil:
		l.cached = h.cached.PushFront(l)
	}
}

// touch makes a log the most recently used one. The shard's lock is held.
func (h *history) touch(l *topicLog) {
	h.mu.Lock()
	defer h.mu.Unlock()

	h.order.MoveToFront(l.used)
	if l.cached != nil {
		h.cached.MoveToFront(l.cached)
	}
}

// put expects the shard's lock to be held.
func (h *history) put(shard *hubShard, l *topicLog) {
	shard.logs[l.topic] = l
	h.mu.Lock()
	defer h.mu.Unlock()

	l.used = h.order.PushFront(l)
	h.kept += l.kept
	if l.owner != "" {
		h.begun[l.owner]++
	}
	for o, bytes := range l.writers {
		h.count(o, bytes)
	}
}

// count adds to what is kept of a sender. h.mu is held.
func (h *history) count(o owner, bytes int) {
	if h.sent[o] += bytes; h.sent[o] <= 0 {
		delete(h.sent, o)
	}
}

// takeOut leaves the disk as it is. The shard's lock is held.
func (h *history) takeOut(shard *hubShard, l *topicLog) {
	delete(shard.logs, l.topic)
	h.mu.Lock()
	defer h.mu.Unlock()

	h.order.Remove(l.used)
	if l.cached != nil {
		h.cached.Remove(l.cached)
	}
	h.bytes -= l.bytes
	h.kept -= l.kept
	if l.owner != "" {
		if h.begun[l.owner]--; h.begun[l.owner] == 0 {
			delete(h.begun, l.owner)
		}
	}
	for o, bytes := range l.writers {
		h.count(o, -bytes)
	}
	l.used, l.cached = nil, nil
}

// drop ends a log, in memory and on the disk. Who has a position in it is told
// of a gap with that reason. The shard's lock is held.
func (h *history) drop(shard *hubShard, l *topicLog, reason string) {
	h.takeOut(shard, l)
	h.mu.Lock()
	if len(h.dropped) >= h.limits.topics {
		clear(h.dropped)
		h.beginEpoch()
	}
	h.dropped[l.topic] = droppedLog{reason, h.epoch}
	h.mu.Unlock()
	h.positions.dropped(l.topic)
	if h.disk != nil {
		h.disk.addMessage(logEnd{l.topic})
	}
}

// mayBegin reports whether a sender may begin that many topics more.
func (h *history) mayBegin(who owner, more int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()

	if who == "" || h.begun[who]+more <= h.share(who) {
		return true
	}
	h.refused += uint64(more)
	return false
}

// share is how many topics a sender may begin. Guests whose addresses say
// nothing have half of all together. h.mu is held.
func (h *history) share(who owner) int {
	switch {
	case who == guestsOwner:
		return max(1, h.limits.topics/2)
	case h.limits.sender < 0:
		return h.limits.topics
	default:
		return h.limits.sender
	}
}

// maySend returns an error if what is kept of a sender, or waits for the disk,
// is as much as it may be. The shard's lock is held.
func (h *history) maySend(l *topicLog, e *entry, r retention) error {
	who := e.message.owner
	if who == "" {
		return nil
	}
	total := h.limits.memory
	if h.disk != nil && h.disk.isReady() {
		total = h.limits.disk
		if h.disk.isBehind(who) {
			return errSenderBehind
		}
	}
	if l != nil && l.count() >= r.messages {
		return nil // it takes the place of another one
	}
	h.mu.Lock()
	defer h.mu.Unlock()

	share := total / diskShare
	if who == guestsOwner {
		share = total / guestsShare
	}
	if h.sent[who]+e.size() <= share {
		return nil
	}
	h.refused++
	return errTooMuchHistory
}

// begin makes a log for a topic that has none, unless the sender has begun too
// many. The shard's lock is held.
func (h *history) begin(shard *hubShard, topic string, who owner) *topicLog {
	if !h.mayBegin(who, 1) {
		return nil
	}
	h.start.Do(func() { h.running.Go(h.run) })

	h.mu.Lock()
	dropped, again := h.dropped[topic]
	if again && dropped.epoch == h.epoch {
		h.beginEpoch()
	}
	delete(h.dropped, topic)
	l := &topicLog{topic: topic, chain: &h.chain, epoch: h.epoch, begun: h.epoch, first: 1, owner: who}
	h.mu.Unlock()
	if again {
		l.ended = dropped.reason
	} else if h.unclean.Load() {
		l.ended = gapEpoch
	}
	h.put(shard, l)
	return l
}

// beginEpoch expects h.mu to be held.
func (h *history) beginEpoch() {
	e := h.chain.begin(true)
	h.epoch = e.name
	if h.disk != nil {
		h.disk.addState("", epochWrite{e})
	}
}

// keep appends the message to the topic's log. It returns [errTooManyTopics] if
// the sender may not begin it. The shard's lock is held; the caller calls evict
// without it.
func (h *history) keep(shard *hubShard, e *entry, r retention) error {
	l := shard.logs[e.message.Topic]
	if err := h.maySend(l, e, r); err != nil {
		return err
	}
	if l == nil {
		if l = h.begin(shard, e.message.Topic, e.message.owner); l == nil {
			return errTooManyTopics
		}
	} else {
		h.touch(l)
	}
	h.account(l, func() { l.append(e, r) })
	if h.disk != nil {
		l.saved = h.disk.addMessage(messageWrite{entry: e, head: l.head()})
	}
	return nil
}

// sentWith returns the message that was sent to a topic with an idempotency key
// and is kept, or nil.
func (h *history) sentWith(ctx context.Context, topic string, key repeatKey) (*entry, error) {
	shard := h.hub.shard(topic)
	for range 10 { // it may be evicted again before it is looked at
		shard.mu.Lock()
		l := shard.logs[topic]
		if l == nil || l.whole() {
			found := l.sentWith(key)
			shard.mu.Unlock()
			return found, nil
		}
		shard.mu.Unlock()
		if err := h.load(ctx, topic); err != nil {
			return nil, err
		}
	}
	return nil, ErrUnavailable
}

// begins is how many of these topics have no log, so that a message begins them.
func (h *history) begins(topics []string) (count int) {
	seen := make(map[string]struct{}, len(topics))
	for _, topic := range topics {
		if _, again := seen[topic]; again {
			continue
		}
		seen[topic] = struct{}{}
		if r, err := h.retention(topic); err != nil || !r.keeps() {
			continue
		}
		shard := h.hub.shard(topic)
		shard.mu.Lock()
		if shard.logs[topic] == nil {
			count++
		}
		shard.mu.Unlock()
	}
	return count
}

// evict brings the sums below the limits: entries go from memory, and whole logs
// where there is no other way; those that were not used for the longest time
// first.
func (h *history) evict() {
	for range 1000 { // others evict too
		l, drop := h.victim()
		if l == nil {
			return
		}
		shard := h.hub.shard(l.topic)
		shard.mu.Lock()
		if shard.logs[l.topic] == l {
			if drop {
				h.drop(shard, l, gapEvicted)
			} else {
				h.account(l, l.forgetEntries)
			}
		}
		shard.mu.Unlock()
	}
}

// victim returns a log to make room with, or nil if there is room.
func (h *history) victim() (l *topicLog, drop bool) {
	h.mu.Lock()
	defer h.mu.Unlock()

	onDisk := h.disk != nil && h.disk.isReady()
	switch {
	case h.order.Len() > h.limits.topics, onDisk && h.kept > h.limits.disk && h.order.Len() > 1:
		h.evicted++
		return h.order.Back().Value.(*topicLog), true
	case h.bytes <= h.limits.memory || h.cached.Len() < 2:
		return nil, false
	case !onDisk:
		h.evicted++
		return h.cached.Back().Value.(*topicLog), true
	}
	for range 100 {
		l := h.cached.Back().Value.(*topicLog)
		if h.disk.isSaved(l.saved) {
			return l, false
		}
		// what is not written yet has to stay: the disk's backlog bounds it
		h.cached.MoveToFront(l.cached)
	}
	return nil, false
}

// load reads what the topic's log has on the disk only. No lock is held.
func (h *history) load(ctx context.Context, topic string) error {
	shard := h.hub.shard(topic)
	for range 3 { // it may be evicted again meanwhile
		shard.mu.Lock()
		l := shard.logs[topic]
		if l == nil || l.whole() {
			shard.mu.Unlock()
			return nil
		}
		from, before := l.first, l.inMemory()
		h.touch(l)
		shard.mu.Unlock()

		entries, err := h.disk.read(ctx, h.app(), topic, from, before)
		if err != nil {
			return fmt.Errorf("failed to read the history: %w", err)
		}

		shard.mu.Lock()
		if shard.logs[topic] == l && l.inMemory() <= before { // else try again
			h.account(l, func() { l.prepend(entries) })
			h.touch(l)
		}
		shard.mu.Unlock()
		h.evict()
	}
	return nil
}

// open makes the histories of the disk those of this process. What was sent
// before is not part of them.
func (h *history) open(left leftBehind) {
	h.start.Do(func() { h.running.Go(h.run) })
	h.chain.take(left.epochs)
	h.unclean.Store(!left.clean)

	for i := range h.hub.shards {
		shard := &h.hub.shards[i]
		shard.mu.Lock()
		for _, l := range shard.logs {
			h.takeOut(shard, l)
		}
		shard.mu.Unlock()
	}
	epoch := left.epochs[len(left.epochs)-1].name // of this start
	h.mu.Lock()
	h.epoch = epoch
	clear(h.dropped)
	h.mu.Unlock()

	for _, head := range left.heads { // the most recently used last
		l := &topicLog{
			topic: head.topic, chain: &h.chain, epoch: epoch, begun: head.begun,
			first: head.first, last: head.last, kept: head.kept, newest: head.newest, owner: head.owner,
		}
		if l.owner != "" {
			l.writers = map[owner]int{l.owner: l.kept} // the disk does not know better
		}
		if !left.clean {
			l.ended = gapEpoch
		}
		shard := h.hub.shard(l.topic)
		shard.mu.Lock()
		h.put(shard, l)
		shard.mu.Unlock()
	}
	h.positions.open(left.positions)
	h.review(time.Now())
	h.evict()
}

func (h *history) stats(s *Stats) {
	h.mu.Lock()
	s.Histories, s.HistoryBytes = h.order.Len(), h.bytes
	s.HistoriesEvicted, s.TopicsRefused = h.evicted, h.refused
	if h.disk != nil {
		s.HistoryDiskBytes = h.kept
	}
	h.mu.Unlock()

	h.positions.mu.Lock()
	s.Positions, s.PositionsEvicted = len(h.positions.byID), h.positions.evicted
	h.positions.mu.Unlock()

	if h.disk != nil {
		messages, lag := h.disk.backlog()
		s.HistoryBacklog, s.HistoryLag = messages, lag.Milliseconds()
	}
}

// openDisk is called when the process starts to serve: another one, such as a
// command beside the server, leaves the disk alone.
func (p *Plugin) openDisk(app core.App) {
	h := p.history
	if h.disk == nil {
		return
	}
	left, err := h.disk.prepare(app, p.config.MaxPositions)
	if err != nil {
		app.Logger().Error("Failed to open the histories of topics: they are in memory only", "error", err.Error())
		return
	}
	if left.opened {
		h.open(left)
		if !left.clean {
			p.endOrphans(app)
		}
		p.presence.restore(left)
	}
}

func (p *Plugin) logHistoryError(topic string, err error) {
	if p.logs.allow("history " + err.Error()) {
		p.outerApp().Logger().Error("Failed to read the history of a topic", "topic", topic, "error", err.Error())
	}
}

// logDiskError is about writes. It is said once a period, however often they fail.
func (p *Plugin) logDiskError(app core.App, err error) {
	if errors.Is(err, errTriedAgain) {
		if p.logs.allow("disk, tried again") {
			app.Logger().Error("Failed to write the history of topics: it is tried again", "error", err.Error())
		}
		return
	}
	if p.logs.allow("disk " + err.Error()) {
		app.Logger().Error(
			"Failed to write the history of topics: after the next restart, clients are told of a gap",
			"error", err.Error(),
		)
	}
}
