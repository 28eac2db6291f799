package topics

import (
	"maps"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/subscriptions"
	"golang.org/x/sync/errgroup"
)

const (
	// clockTTL is how long a decision counts whose rule asks for the time.
	clockTTL = 100 * time.Millisecond

	// clockTick is how often ended decisions are looked for, and clockPause
	// how long one is left alone where nobody publishes: together well below
	// the second in which a subscriber is told.
	clockTick  = 250 * time.Millisecond
	clockPause = 500 * time.Millisecond

	// settle is the pause before touched grants are decided anew, so that a
	// burst of writes costs one decision.
	settle = 10 * time.Millisecond

	// shareFor is how old a decision may be that a new subscription shares.
	// (Only writes past the app could have made it wrong.)
	shareFor = time.Second

	// inlineDecisions is how many stale grants of a topic a publisher decides
	// itself before it sends. Where there are more, their messages wait.
	inlineDecisions = 32
)

// grantKey is all that a decision to let somebody subscribe, or see the
// members, depends on, other than data. Subscriptions that have it in common share the decision.
type grantKey struct {
	action  action // actionSubscribe, or actionPresence for its option
	topic   string
	options string // as sent: what follows the topic in the key
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
	options subscriptions.SubscriptionOptions

	marked atomic.Uint64
	valid  atomic.Uint64 // fresh when equal to marked, which starts higher
	// Unix nanoseconds of the decision, and when it ends by itself
	decided atomic.Int64
	until   atomic.Int64

	// which member its subscribers are, for the last decision that let in
	identity atomic.Pointer[identity]

	storing sync.Mutex // of a decision: valid and until belong together

	// guarded by grants.mu
	refs    int
	holders map[holder]struct{}

	// watching serialises the changes of reads, which is what the grant is
	// registered for in the watches
	watching sync.Mutex
	reads    reads
	gone     bool
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
}

// grants keeps the decisions of all open subscriptions true.
type grants struct {
	rules   *rules
	decide  func(g *grant) outcome
	revoked func(g *grant, o outcome) // called when subscriptions are taken back
	sweep   time.Duration             // 0 for none
	watches *watches
	guard   *guard

	mu    sync.Mutex
	all   map[grantKey]*grant
	dirty map[*grant]struct{}

	wake chan struct{} // has room for one: something is dirty

	// the goroutine that decides dirty grants anew, started with the first
	// grant
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
	identity *identity
}

func newGrants(rules *rules, sweep time.Duration) *grants {
	return &grants{
		rules:   rules,
		sweep:   sweep,
		watches: newWatches(),
		all:     map[grantKey]*grant{},
		dirty:   map[*grant]struct{}{},
		wake:    make(chan struct{}, 1),
		stop:    make(chan struct{}),
	}
}

// close ends the deciding goroutine and waits for it.
func (gs *grants) close() {
	gs.halt()
	gs.running.Wait()
}

// halt lets no decision count that takes something back.
func (gs *grants) halt() {
	gs.end.Do(func() { close(gs.stop) })
	gs.start.Do(func() {}) // it is not started any more
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
	_, raw, _ := strings.Cut(key, "?")
	k := grantKey{action: a, topic: topicOf(key), options: raw, auth: auth}

	gs.start.Do(func() { gs.running.Go(gs.run) })

	gs.mu.Lock()
	g := gs.all[k]
	if g == nil {
		g = &grant{key: k, app: app, options: options, holders: map[holder]struct{}{}}
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
		delete(gs.dirty, g)
	}
	gs.mu.Unlock()

	if last {
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
	g.holders[h] = struct{}{}
	gs.mu.Unlock()

	// it may have been decided anew, and denied, before it had this holder
	if !g.fresh(time.Now().UnixNano()) {
		gs.markDirty(g)
	}
}

// handOver lets another holder take over the reference of one.
func (gs *grants) handOver(g *grant, from, to holder) {
	gs.mu.Lock()
	delete(g.holders, from)
	gs.mu.Unlock()

	gs.hold(g, to)
}

func (gs *grants) drop(g *grant, h holder) {
	gs.mu.Lock()
	delete(g.holders, h)
	gs.mu.Unlock()

	gs.release(g)
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
func (gs *grants) markDirty(list ...*grant) {
	gs.mu.Lock()
	for _, g := range list {
		if g.refs > 0 {
			gs.dirty[g] = struct{}{}
		}
	}
	gs.mu.Unlock()
	gs.signal()
}

func (gs *grants) signal() {
	select {
	case gs.wake <- struct{}{}:
	default:
	}
}

// run decides touched grants anew, so that who is thrown out is told soon,
// ended ones, and now and then all.
func (gs *grants) run() {
	tick := time.NewTicker(clockTick)
	defer tick.Stop()

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
			}
			gs.decideAll(gs.takeDirty())
		case now := <-tick.C:
			gs.decideAll(gs.ended(now))
		case <-sweep:
			// what nobody told us of: raw SQL, other processes
			gs.rules.changed()
			gs.decideAll(gs.list())
		}
	}
}

func (gs *grants) takeDirty() []*grant {
	gs.mu.Lock()
	defer gs.mu.Unlock()

	list := slices.Collect(maps.Keys(gs.dirty))
	clear(gs.dirty)
	return list
}

func (gs *grants) ended(now time.Time) []*grant {
	gs.mu.Lock()
	defer gs.mu.Unlock()

	var list []*grant
	for _, g := range gs.all {
		past := now.UnixNano() >= g.until.Load() && now.UnixNano()-g.decided.Load() >= int64(clockPause)
		if past && len(g.holders) > 0 {
			list = append(list, g)
		}
	}
	return list
}

func (gs *grants) decideAll(list []*grant) {
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))

	for _, g := range list {
		group.Go(func() error {
			if !gs.halted() {
				gs.decideAgain(g)
			}
			return nil
		})
	}
	_ = group.Wait() // the functions return no error
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
		g.identity.Store(o.identity)
		g.valid.Store(marked)
	}
	return o, marked
}

// decideFor is decideNow for a subscriber who comes in. A decision of a moment
// ago serves many who come at once.
func (gs *grants) decideFor(g *grant) *denial {
	now := time.Now().UnixNano()
	if g.fresh(now) && now-g.decided.Load() < int64(shareFor) {
		return nil
	}

	o, _ := gs.decideNow(g)
	if o.denial != nil {
		gs.markDirty(g) // for those who are in by the same grant
	}
	return o.denial
}

const forever = math.MaxInt64
