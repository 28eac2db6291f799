package topics_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/subscriptions"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

// hang is code of the app that hangs until the test is over.
type hang struct {
	on      atomic.Bool
	entered chan struct{}
	release chan struct{}
	calls   sync.WaitGroup
}

func newHang(t *testing.T) *hang {
	h := &hang{entered: make(chan struct{}, 100), release: make(chan struct{})}
	t.Cleanup(func() {
		close(h.release)
		h.calls.Wait()
	})
	return h
}

func (h *hang) here() {
	if h.on.Load() {
		h.entered <- struct{}{}
		<-h.release
	}
}

// in runs f in a goroutine that the test waits for at its end.
func (h *hang) in(f func()) { h.calls.Go(f) }

// stuckClient is a client of the app's own whose Send hangs.
type stuckClient struct {
	subscriptions.Client
	h *hang
}

func (c *stuckClient) Send(subscriptions.Message) { c.h.here() }

// slowQuery runs for hours.
const slowQuery = `WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c LIMIT 100000000000) SELECT 'x' AS id, count(*) AS n FROM c`

// Whatever hangs, the shutdown takes the write timeout at most, says what has
// not ended, and nothing comes to harm by it when it goes on.
func TestShutdownIsBounded(t *testing.T) {
	const timeout = time.Second

	for name, c := range map[string]struct {
		begin func(w *world, h *hang)
		left  string // of the error, empty where everything can be ended
	}{
		"a handler of OnRecordEnrich, in a decision": {left: "decisions", begin: func(w *world, h *hang) {
			w.hangEnriching(h)
			h.on.Store(true)
			w.set(w.ann, "role", "other")
		}},
		"a handler of OnRecordEnrich, for a publisher": {left: "publishing", begin: func(w *world, h *hang) {
			w.hangEnriching(h)
			h.on.Store(true)
			h.in(func() {
				w.ann.Set("role", "other")
				if err := w.app.Save(w.ann); err != nil {
					w.t.Error(err)
				}
				// a message that was on its way is refused, not lost
				if err := topics.Notify(w.app, w.topic, "x"); err != nil {
					require.ErrorIs(w.t, err, topics.ErrClosed)
				}
			})
			<-h.entered // there may be two: the plugin's and the publisher's
		}},
		"a handler of a presence hook": {left: "presence hooks", begin: func(w *world, h *hang) {
			topics.From(w.app).OnJoin().BindFunc(func(e *topics.MemberEvent) error {
				h.here()
				return e.Next()
			})
			h.on.Store(true)
			bob, token := newUser(w.t, w.app, "bob")
			newRecord(w.t, w.app, "memberships", map[string]any{"room": w.room.Id, "user": bob.Id})
			h.in(func() { w.s.connect().subscribe(token, w.topic) })
		}},
		"a client of the app's own": {left: "app's own code", begin: func(w *world, h *hang) {
			foreign := &stuckClient{subscriptions.NewDefaultClient(), h}
			foreign.Subscribe("public")
			w.app.SubscriptionsBroker().Register(foreign)
			h.on.Store(true)
			w.notify("public", "x")
		}},
		"a query of a decision": {begin: func(w *world, h *hang) {
			_, err := w.app.NonconcurrentDB().NewQuery("DROP VIEW slow").Execute()
			require.NoError(w.t, err)
			_, err = w.app.NonconcurrentDB().NewQuery("CREATE VIEW slow AS SELECT * FROM (" + slowQuery + ")").Execute()
			require.NoError(w.t, err)
			rule := w.definition()
			rule.Set("subscribeRule", "@collection.slow.n ?= 1")
			require.NoError(w.t, w.app.Save(rule))
			time.Sleep(100 * time.Millisecond) // the query has begun
			h.entered <- struct{}{}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHang(t)
			config := noSweep()
			config.WriteTimeout = timeout
			w := newWorld(t, map[string]any{
				"collection": "rooms", "subscribeRule": memRule, "presence": true, "presenceFields": "role", "history": 10,
			}, config)
			view := core.NewViewCollection("slow")
			view.ViewQuery = "SELECT id, (1) as n FROM bans"
			w.save(view)
			w.notify(w.topic, "kept")

			c.begin(w, h)
			<-h.entered

			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			defer cancel()
			start := time.Now()
			err := topics.Close(ctx, w.app)
			require.Less(t, time.Since(start), timeout+time.Second)
			if c.left == "" {
				require.NoError(t, err)
				require.Less(t, time.Since(start), timeout, "it ended before the deadline")
			} else {
				require.ErrorContains(t, err, c.left)
			}
			require.NotContains(t, errText(err), "histories", "they were written, whatever hangs")
		})
	}
}

func (w *world) hangEnriching(h *hang) {
	w.app.OnRecordEnrich().BindFunc(func(e *core.RecordEnrichEvent) error {
		h.here()
		return e.Next()
	})
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// Who is there when the app terminates, with a decision that is cut off, has not
// left: the next start expects the members back.
func TestACutDecisionTakesNothingBack(t *testing.T) {
	h := newHang(t)
	w := newWorld(t, map[string]any{
		"collection": "rooms", "subscribeRule": memRule, "presence": true, "presenceFields": "role",
	}, noSweep())
	var left atomic.Int64
	topics.From(w.app).OnLeave().BindFunc(func(e *topics.MemberEvent) error {
		left.Add(1)
		return e.Next()
	})
	w.hangEnriching(h)
	h.on.Store(true)
	w.set(w.ann, "role", "other")
	<-h.entered
	h.on.Store(false)

	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	require.Error(t, topics.Close(ctx, w.app))
	var members int
	require.NoError(t, w.app.AuxDB().NewQuery("SELECT count(*) FROM _topicsMembers").Row(&members))
	require.Equal(t, 1, members)
	require.Zero(t, left.Load())
}
