package topics

import (
	"context"
	dbsql "database/sql"
	"errors"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
)

// For the tests of package topics_test.

// NewRand and Rounds are the randomness and the length of randomized tests.
func NewRand(t testing.TB) *rand.Rand { return newRand(t) }

// SetCheapPassword sets a password whose hash costs little: with the race
// detector the usual one takes a second.
func SetCheapPassword(record *core.Record, password string) {
	if field, ok := record.Collection().Fields.GetByName(core.FieldNamePassword).(*core.PasswordField); ok {
		field.Cost = 4
	}
	record.SetPassword(password)
}

func Rounds() int { return *rounds }

// Settled reports whether every open subscription is decided.
func Settled(app core.App) bool {
	now := time.Now().UnixNano()
	gs := From(app).grants
	for _, g := range gs.list() {
		if len(gs.holders(g)) > 0 && !g.fresh(now) {
			return false
		}
	}
	return true
}

// Grants is how many decisions are kept.
func Grants(app core.App) int { return len(From(app).grants.list()) }

// SettleHistory waits until all writes so far are on the disk.
func SettleHistory(app core.App) {
	d := From(app).history.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	messages, states := d.messages.added, d.states.added
	for d.accepts() && (d.messages.done < messages || d.states.done < states) {
		d.more.Wait()
	}
}

// Restored reports whether members from before the start are looked for no more.
func Restored(app core.App) bool { return From(app).presence.restoring.Load() == 0 }

// Decided reports whether every decision counts, also those that have no open
// subscription yet.
func Decided(app core.App) bool {
	now := time.Now().UnixNano()
	for _, g := range From(app).grants.list() {
		if !g.fresh(now) {
			return false
		}
	}
	return true
}

// ReviewHistories applies the rules to all histories, as a timer does.
func ReviewHistories(app core.App) { From(app).history.review(time.Now()) }

// OpenDisk is what serving does for the histories.
func OpenDisk(app core.App) {
	p := From(app)
	p.serving.Store(&app)
	p.openDisk(app)
}

// PositionID is where the position of a guest is kept.
func PositionID(topic, resume string) string { return positionID(credentials{}, topic, resume) }

// Close closes the plugin as the app's termination does.
func Close(ctx context.Context, app core.App) error { return From(app).close(ctx, app) }

// TakeLocks takes and gives back each lock of the plugin. It returns the name of
// one that its caller holds, or has a hand in holding: that is not free in time.
func TakeLocks(app core.App, patience time.Duration) (held string) {
	p := From(app)
	locks := map[string]sync.Locker{
		"grants": &p.grants.mu, "watches": &p.grants.watches.mu, "writes": &p.writes.mu, "commits": &p.commits.mu,
		"calls": &p.calls.mu, "presence": &p.presence.mu, "foreign": &p.foreign.mu, "history": &p.history.mu,
		"positions": &p.history.positions.mu, "repeats": &p.repeats.mu, "log": &p.logs.mu,
		"queue": &p.grants.queue.mu, "clock": &p.grants.clock.mu, "quota": &p.quota.mu,
	}
	if d := p.history.disk; d != nil {
		locks["disk"] = &d.mu
	}
	if set := p.rules.current.Load(); set != nil {
		locks["plans"] = &set.plans.mu
	}
	for i := range p.hub.shards {
		locks["shard "+strconv.Itoa(i)] = &p.hub.shards[i].mu
	}
	p.hub.clients.Range(func(c, _ any) bool {
		own := c.(*client)
		locks["client "+own.id], locks["subscriptions of "+own.id] = &own.mu, &own.subsMu
		if own.peer != nil {
			locks["peer of "+own.id] = &own.peer.mu
		}
		return true
	})

	free := make(chan struct{})
	var at atomic.Value
	go func() {
		defer close(free)
		for name, l := range locks {
			at.Store(name)
			takeLock(l)
		}
		for _, g := range p.grants.list() {
			at.Store("grant of " + g.key.topic)
			for _, l := range []sync.Locker{&g.storing, &g.watching} {
				takeLock(l)
			}
		}
	}()
	select {
	case <-free:
		return ""
	case <-time.After(patience):
		return at.Load().(string)
	}
}

// SetLogger makes the app write its log with the handler.
func SetLogger(app *core.BaseApp, handler slog.Handler) {
	field := reflect.ValueOf(app).Elem().FieldByName("logger")
	reflect.NewAt(field.Type(), field.Addr().UnsafePointer()).Elem().Set(reflect.ValueOf(slog.New(handler)))
}

// HoldIdempotencyKey makes a guest's key one that is being sent with data, until
// release.
func HoldIdempotencyKey(app core.App, topic, key, data string) (release func()) {
	rs := From(app).repeats
	k := newRepeatKey("", "", topic, key)
	rs.get(k)
	return func() { rs.finish("", k, "", contentOf(Message{Data: []byte(data)}), nil) }
}

// takeLock returns when nobody holds the lock.
func takeLock(l sync.Locker) {
	l.Lock()
	defer l.Unlock()
}

// Seats returns how many subscriptions count for accounts, how many connections
// have some, and how many connections count for addresses.
func Seats(app core.App) (seats, connections, addresses int) {
	q := From(app).quota
	q.mu.Lock()
	defer q.mu.Unlock()

	for _, use := range q.accounts {
		seats += use.seats
		connections += len(use.byConnection)
	}
	for _, n := range q.addresses {
		addresses += n
	}
	return seats, connections, addresses
}

// CountDecisions counts the decisions of open subscriptions from now on. It is
// called before there are any.
func CountDecisions(app core.App) *atomic.Int64 {
	gs, count := From(app).grants, new(atomic.Int64)
	decide := gs.decide
	gs.decide = func(g *grant) outcome {
		count.Add(1)
		return decide(g)
	}
	return count
}

// Seated returns how many open subscriptions of connections have a seat, and how
// many are guarded by a rule for an account that is not a superuser.
func Seated(app core.App) (seats, guarded int) {
	From(app).hub.clients.Range(func(found, _ any) bool {
		c := found.(*client)
		c.subsMu.Lock()
		defer c.subsMu.Unlock()

		for _, s := range c.subs {
			if s.taken != nil {
				seats++
			}
			if s.grant != nil && s.grant.account != "" {
				guarded++
			}
		}
		return true
	})
	return seats, guarded
}

// PresenceTold reports whether all changes of a topic's members were told.
func PresenceTold(app core.App, topic string) bool {
	shard := From(app).hub.shard(topic)
	shard.mu.Lock()
	defer shard.mu.Unlock()

	tm := shard.members[topic]
	return tm == nil || !tm.queued && len(tm.changed) == 0
}

// WithGuestRecords is what [Notify] does with its data first.
func WithGuestRecords(data any) (any, error) { return withGuestRecords(data) }

// LineOf is the JSON that [Notify] makes.
func LineOf(data any) ([]byte, error) {
	data, err := withGuestRecords(data)
	if err != nil {
		return nil, err
	}
	return marshalLine(data)
}

// FailDisk makes the next attempts to write fail, as of a locked database.
func FailDisk(app core.App, times int64) {
	d := From(app).history.disk
	d.mu.Lock()
	defer d.mu.Unlock()

	commit := d.commit
	d.commit = func(db *dbsql.DB, states, messages []diskWrite) (int, error) {
		if times--; times >= 0 {
			return 0, errors.New("database is locked")
		}
		return commit(db, states, messages)
	}
}
