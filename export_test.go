package topics

import (
	"context"
	"math/rand/v2"
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
