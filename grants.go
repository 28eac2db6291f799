package topics

import (
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/subscriptions"
)

const (
	// settle is the pause before touched grants are decided anew, so that a
	// burst of writes costs one decision.
	settle = 10 * time.Millisecond

	// shareFor is how old a decision may be that a new subscription shares.
	// (Only writes past the app could have made it wrong.)
	shareFor = time.Second

	// inlineDecisions is how many stale grants of a topic a publisher decides
	// itself before it sends, and inlinePerOwner how many of one account, or of
	// all guests. The messages of others wait.
	inlineDecisions = 32
	inlinePerOwner  = 2

	// heavyRest is how much time decisions of heavy owners take before the
	// worker rests as long, at most heavyPause.
	heavyRest  = 5 * time.Millisecond
	heavyPause = 50 * time.Millisecond
)

// grantKey is all that a decision to let somebody subscribe, or see the
// members, depends on, other than data. Subscriptions that have it in common share the decision.
type grantKey struct {
	action  action // actionSubscribe, or actionPresence for its option
	topic   string
	options string // those that the rule reads
	auth    credentials
}

// grant is the decision that lets subscriptions receive a topic.
//
// It is fresh while no write has touched what it was decided on. A touch
// raises marked; a decision notes marked before it reads anything, and makes
// the grant fresh only for that value. docs/guarantees.md has the argument.
type grant struct {
	key     grantKey
	app     core.App
	account owner       // empty for guests
	names   optionNames // the options that it knows, which are these
	options subscriptions.SubscriptionOptions

	queued atomic.Bool // waits for a decision
	again  atomic.Bool // which is to be made even if the grant is fresh

	marked atomic.Uint64
	valid  atomic.Uint64 // fresh when equal to marked, which starts higher
	// Unix nanoseconds of the decision, and when it ends by itself
	decided atomic.Int64
	until   atomic.Int64
	clock   atomic.Bool // it ends because the rule asks for the time
	timed   atomic.Bool // the clock has it

	// which member its subscribers are, for the last decision that let in
	identity atomic.Pointer[identity]

	storing sync.Mutex // of a decision: valid and until belong together

	// guarded by grants.mu
	refs    int
	holders map[holder]struct{}
	guests  map[owner]int // how many holders whom has, if it is guests' grant

	// watching serialises the changes of reads, which is what the grant is
	// registered for in the watches
	watching sync.Mutex
	reads    reads
	gone     bool

	released atomic.Bool // nobody has it
}

func (g *grant) fresh(now int64) bool {
	// valid first: a touch that ends before the look-up is seen
	valid := g.valid.Load()
	return valid == g.marked.Load() && now < g.until.Load()
}

// holder is what lives by a grant: a subscription, its view of the members, or
// what is left of it in the members' grace.
type holder interface {
	// resume says that the grant was decided anew and lets in.
	resume(g *grant)

	// revoke ends the holder if the grant's denial still counts: if nothing
	// has touched the grant since it was marked like this. It reports false if
	// that has to be asked again later.
	revoke(g *grant, marked uint64, o outcome) bool

	// move lets the holder live by another grant, if it still lives by that
	// one. It takes over the reference to the other.
	move(from, to *grant)

	// subscriptionKey is the key that the options are in.
	subscriptionKey() string

	// guest is whom the holder counts for where there is no account.
	guest() owner
}

// grants keeps the decisions of all open subscriptions true.
type grants struct {
	rules   *rules
	project func(app core.App, a action, key string, options subscriptions.SubscriptionOptions) projection
	decide  func(g *grant) outcome
	revoked func(g *grant, o outcome) // called when subscriptions are taken back
	sweep   time.Duration             // 0 for none
	watches *watches
	guard   *guard

	mu    sync.Mutex
	all   map[grantKey]*grant
	loads map[owner]int // how many of guests' grants each of them holds

	clock   *clock
	nextEnd atomic.Int64 // no other decision ends by itself before that

	queue *queue
	wake  chan struct{} // has room for one: something came into the queue
	hurry chan struct{} // has room for one: something waits for a decision

	// the goroutines that decide again, started with the first grant
	start   sync.Once
	end     sync.Once
	stop    chan struct{}
	running sync.WaitGroup
}

// outcome is a decision. Without a denial it lets in.
type outcome struct {
	denial   *denial
	reason   string // for a subscriber who is thrown out
	until    int64  // Unix nanoseconds when it ends by itself
	clock    bool   // because the rule asks for the time
	identity *identity

	// moves: the rule reads options by now that the grant does not know. Its
	// holders need other grants. It comes with a denial, which nobody is told.
	moves bool
}

func newGrants(rules *rules, sweep time.Duration) *grants {
	return &grants{
		rules:   rules,
		sweep:   sweep,
		watches: newWatches(),
		all:     map[grantKey]*grant{},
		loads:   map[owner]int{},
		clock:   newClock(),
		queue:   newQueue(),
		wake:    make(chan struct{}, 1),
		hurry:   make(chan struct{}, 1),
		stop:    make(chan struct{}),
		project: func(_ core.App, _ action, key string, options subscriptions.SubscriptionOptions) projection {
			return everyOption(key, options)
		},
	}
}

// close ends the goroutines and waits for them.
func (gs *grants) close() {
	gs.halt()
	gs.running.Wait()
}

// halt lets no decision count that takes something back.
func (gs *grants) halt() {
	gs.end.Do(func() {
		close(gs.stop)
		gs.queue.close()
	})
	gs.start.Do(func() {}) // they are not started later
}

func (gs *grants) halted() bool {
	select {
	case <-gs.stop:
		return true
	default:
		return false
	}
}

// touched reports whether something has touched the grant since it let in.
func (g *grant) touched() bool { return g.valid.Load() != g.marked.Load() }

// denies reports whether a denial that was decided when the grant was marked
// like this still counts.
func (g *grant) denies(marked uint64) bool {
	return g.marked.Load() == marked && g.valid.Load() != marked
}

// acquire returns the grant for the key. From now on writes touch it, so that
// what the caller decides next cannot miss one.
func (gs *grants) acquire(app core.App, a action, key string, options subscriptions.SubscriptionOptions, auth credentials) *grant {
	known := gs.project(app, a, key, options)
	k := grantKey{action: a, topic: topicOf(key), options: known.text, auth: auth}

	gs.start.Do(func() {
		gs.running.Go(gs.run)
		gs.running.Go(gs.runClock)
		for range workers() {
			gs.running.Go(gs.work)
		}
	})

	gs.mu.Lock()
	g := gs.all[k]
	if g == nil {
		g = &grant{key: k, app: app, names: known.names, options: known.options, holders: map[holder]struct{}{}}
		if auth.id != "" {
			g.account = accountOwner(auth.collection, auth.id)
		}
		g.marked.Store(1)
		gs.all[k] = g
	}
	g.refs++
	gs.mu.Unlock()

	return g
}

// release gives the grant back. The last one who does so ends it.
func (gs *grants) release(g *grant) {
	gs.mu.Lock()
	g.refs--
	last := g.refs == 0
	if last {
		delete(gs.all, g.key)
	}
	gs.mu.Unlock()

	if last {
		g.released.Store(true)
		if g.timed.Load() {
			gs.clock.released.Add(1)
		}
		g.watching.Lock()
		g.gone = true
		gs.watches.remove(g, g.reads)
		g.reads = reads{}
		g.watching.Unlock()
	}
}

// hold adds a holder, which takes the reference of an acquire over.
func (gs *grants) hold(g *grant, h holder) {
	gs.mu.Lock()
	gs.addHolder(g, h)
	gs.mu.Unlock()

	// it may have been decided anew, and denied, before it had this holder
	if !g.fresh(time.Now().UnixNano()) {
		gs.markDirty(g)
	}
}

// handOver lets another holder take over the reference of one.
func (gs *grants) handOver(g *grant, from, to holder) {
	gs.mu.Lock()
	gs.removeHolder(g, from)
	gs.mu.Unlock()

	gs.hold(g, to)
}

func (gs *grants) drop(g *grant, h holder) {
	gs.mu.Lock()
	gs.removeHolder(g, h)
	gs.mu.Unlock()

	gs.release(g)
}

// addHolder and removeHolder expect gs.mu to be held.
func (gs *grants) addHolder(g *grant, h holder) {
	if _, held := g.holders[h]; held {
		return
	}
	g.holders[h] = struct{}{}
	if g.account != "" {
		return
	}
	if g.guests == nil {
		g.guests = map[owner]int{}
	}
	o := h.guest()
	if g.guests[o]++; g.guests[o] == 1 {
		gs.loads[o]++
	}
}

func (gs *grants) removeHolder(g *grant, h holder) {
	if _, held := g.holders[h]; !held {
		return
	}
	delete(g.holders, h)
	if g.account != "" {
		return
	}
	o := h.guest()
	if g.guests[o]--; g.guests[o] > 0 {
		return
	}
	delete(g.guests, o)
	if gs.loads[o]--; gs.loads[o] == 0 {
		delete(gs.loads, o)
	}
}

// payer returns in whose turn the grant is decided: its account's. Guests share
// grants; it is the turn of whoever of them holds the fewest, so that one with
// many does not delay the others. It expects gs.mu to be held.
func (gs *grants) payer(g *grant) owner {
	if g.account != "" {
		return g.account
	}
	var (
		lightest owner
		load     = math.MaxInt
	)
	for o := range g.guests {
		if n := gs.loads[o]; n < load {
			lightest, load = o, n
		}
	}
	return lightest
}

func (gs *grants) holders(g *grant) []holder {
	gs.mu.Lock()
	defer gs.mu.Unlock()

	return slices.Collect(maps.Keys(g.holders))
}

// watch registers the grant for what its rule reads by now.
func (gs *grants) watch(g *grant, r reads) {
	g.watching.Lock()
	defer g.watching.Unlock()

	if g.gone || g.reads.equal(r) {
		return
	}
	gs.watches.add(g, r) // before the removal: there is no moment without
	gs.watches.remove(g, g.reads.without(r))
	g.reads = r
}

// touch makes grants stale. Whatever is published from now on is sent only
// after a new decision.
func (gs *grants) touch(touched []*grant) {
	if len(touched) == 0 {
		return
	}

	for _, g := range touched {
		g.marked.Add(1)
	}
	gs.markDirty(touched...)
}

// touchAll makes all grants stale: rules or collections have changed.
func (gs *grants) touchAll() {
	gs.touch(gs.list())
}

func (gs *grants) list() []*grant {
	gs.mu.Lock()
	defer gs.mu.Unlock()

	return slices.Collect(maps.Values(gs.all))
}

// markDirty asks for new decisions soon.
func (gs *grants) markDirty(list ...*grant) { gs.enqueue(gs.wake, list...) }

// ask asks for a new decision at once: something is to be sent. A topic's lock
// may be held.
func (gs *grants) ask(g *grant) { gs.enqueue(gs.hurry, g) }

func (gs *grants) enqueue(signal chan struct{}, list ...*grant) {
	var fresh []*grant
	for _, g := range list {
		if !g.queued.Load() && g.queued.CompareAndSwap(false, true) {
			fresh = append(fresh, g)
		}
	}
	if len(fresh) == 0 {
		return
	}
	gs.queue.put(fresh...)

	select {
	case signal <- struct{}{}:
	default:
	}
}

// run lines up the grants that need a new decision, and now and then all.
func (gs *grants) run() {
	var sweep <-chan time.Time
	if gs.sweep > 0 {
		ticker := time.NewTicker(gs.sweep)
		defer ticker.Stop()
		sweep = ticker.C
	}

	for {
		select {
		case <-gs.stop:
			return
		case <-gs.wake:
			select {
			case <-gs.stop:
				return
			case <-time.After(settle):
			case <-gs.hurry:
			}
			gs.lineUp(gs.queue.takeIncoming())
		case <-gs.hurry:
			gs.lineUp(gs.queue.takeIncoming())
		case <-sweep:
			// what nobody told us of: raw SQL, other processes
			gs.rules.changed()
			all := gs.list()
			for _, g := range all {
				g.again.Store(true)
			}
			gs.markDirty(all...)
		}
	}
}

// lineUp gives the grants that are still open a place in the queue.
func (gs *grants) lineUp(list []*grant) {
	for _, g := range list {
		if g.released.Load() {
			continue
		}
		gs.mu.Lock()
		o := gs.payer(g)
		gs.mu.Unlock()
		gs.queue.line(o, g)
	}
}

// work decides the grants whose turn it is. Heavy owners have only half of its
// time.
func (gs *grants) work() {
	var spent time.Duration
	for {
		g, l := gs.queue.next()
		if g == nil {
			return
		}
		start := time.Now()
		_ = gs.guard.run("deciding", func() { gs.serve(g) }) // it is logged
		if l.isHeavy() {
			if spent += time.Since(start); spent >= heavyRest {
				gs.rest(min(spent, heavyPause))
				spent = 0
			}
		}
		gs.queue.done(l)
	}
}

// serve decides a grant that has waited in the queue, unless somebody else has
// done so meanwhile.
func (gs *grants) serve(g *grant) {
	g.queued.Store(false) // a touch from now on puts it there again

	if g.released.Load() {
		return
	}
	if g.again.Swap(false) || !g.fresh(time.Now().UnixNano()) {
		gs.decideAgain(g)
		return
	}
	for _, h := range gs.holders(g) {
		h.resume(g)
	}
}

// decideAgain decides an open grant anew and lets its subscriptions know. After
// a panic the grant stays stale, so that nothing is sent by it.
func (gs *grants) decideAgain(g *grant) {
	_ = gs.guard.run("deciding", func() { gs.decideAndTell(g) }) // it is logged
}

func (gs *grants) decideAndTell(g *grant) {
	o, marked := gs.decideNow(g)
	if o.denial != nil && gs.halted() {
		return // it may have failed because the app terminates
	}
	if o.moves {
		gs.moveHolders(g)
		return
	}

	holders := gs.holders(g)
	if o.denial != nil && len(holders) > 0 && g.denies(marked) {
		gs.revoked(g, o)
	}
	for _, h := range holders {
		if o.denial == nil {
			h.resume(g)
		} else if !h.revoke(g, marked, o) {
			gs.markDirty(g)
		}
	}

	if o.denial == nil && g.touched() {
		gs.markDirty(g)
	}
}

// moveHolders gives each holder a grant that knows the options which the rule
// reads by now. Until that one is decided nothing is let through.
func (gs *grants) moveHolders(g *grant) {
	for _, h := range gs.holders(g) {
		key := h.subscriptionKey()
		to := gs.acquire(g.app, g.key.action, key, parseKeys([]string{key})[key], g.key.auth)
		if to == g {
			gs.release(to)
			gs.markDirty(g) // the rule has changed once more
			continue
		}
		h.move(g, to)
		h.resume(to) // it may have been decided for others
	}
}

// decideNow decides, and makes the grant fresh if it lets in. The decision
// counts while the grant's marked has the value that it answers.
func (gs *grants) decideNow(g *grant) (o outcome, marked uint64) {
	for range 3 { // under constant writes somebody asks again later
		marked = g.marked.Load()
		o = gs.decide(g)
		if g.marked.Load() == marked {
			break
		}
	}

	if o.denial != nil {
		// nothing may have touched the grant: its time was over, or a sweep
		// has found what no hook told of
		if g.marked.CompareAndSwap(marked, marked+1) {
			marked++
		}
		return o, marked
	}

	g.storing.Lock()
	defer g.storing.Unlock()
	if g.marked.Load() == marked { // else a newer decision may have stored already
		g.decided.Store(time.Now().UnixNano())
		g.until.Store(o.until)
		g.clock.Store(o.clock)
		if o.clock {
			gs.clock.add(g)
		} else {
			gs.endsAt(o.until)
		}
		g.identity.Store(o.identity)
		g.valid.Store(marked)
	}
	return o, marked
}

// decideFor is decideNow for a subscriber who comes in. A decision of a moment
// ago serves many who come at once.
func (gs *grants) decideFor(g *grant) *denial {
	o := gs.outcomeFor(g)
	return o.denial
}

func (gs *grants) outcomeFor(g *grant) outcome {
	now := time.Now().UnixNano()
	if g.fresh(now) && now-g.decided.Load() < int64(shareFor) {
		return outcome{}
	}

	o, _ := gs.decideNow(g)
	if o.denial != nil {
		gs.markDirty(g) // for those who are in by the same grant
	}
	return o
}

// admit acquires the grant for a key and decides it. Without a denial the
// caller has a reference.
func (gs *grants) admit(app core.App, a action, key string, options subscriptions.SubscriptionOptions, auth credentials) (*grant, *denial) {
	for try := 0; ; try++ {
		g := gs.acquire(app, a, key, options, auth)
		o := gs.outcomeFor(g)
		if o.denial == nil {
			return g, nil
		}
		gs.release(g)
		if !o.moves || try == 2 {
			return nil, o.denial
		}
		// the rule has changed since the grant was acquired
	}
}

const forever = math.MaxInt64
