package topics

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestGate(t *testing.T) {
	var g gate
	require.True(t, g.enter())
	require.True(t, g.enter())
	require.False(t, g.leave())
	require.False(t, g.close(), "one is inside")
	require.False(t, g.enter())

	over, cancel := context.WithCancel(t.Context())
	cancel()
	require.False(t, g.wait(over))
	require.True(t, g.leave())
	require.True(t, g.wait(t.Context()))

	var idle gate
	require.True(t, idle.close())
	require.True(t, idle.wait(t.Context()))
	require.False(t, idle.enter())
}

// However calls and the end fall together: nobody is inside after the wait, and
// one is the last.
func TestGateUnderLoad(t *testing.T) {
	for range 200 {
		var (
			g      gate
			mu     sync.Mutex
			inside int
			ended  bool
			lasts  int
			all    sync.WaitGroup
		)
		for range 4 {
			all.Go(func() {
				for g.enter() {
					mu.Lock()
					inside++
					if ended {
						t.Error("inside after the end")
					}
					mu.Unlock()
					mu.Lock()
					inside--
					mu.Unlock()
					if g.leave() {
						mu.Lock()
						lasts++
						mu.Unlock()
					}
				}
			})
		}
		time.Sleep(10 * time.Microsecond)
		empty := g.close()
		require.True(t, g.wait(t.Context()))
		mu.Lock()
		ended = true
		require.Zero(t, inside)
		mu.Unlock()
		all.Wait()
		if empty {
			lasts++
		}
		require.Equal(t, 1, lasts)
	}
}

// deadlineWriter is a response that knows its deadline.
type deadlineWriter struct {
	http.ResponseWriter

	mu       sync.Mutex
	deadline time.Time
	released bool
	t        *testing.T
}

func (w *deadlineWriter) SetWriteDeadline(at time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.released {
		w.t.Error("touched after its handler has returned")
	}
	w.deadline = at
	return nil
}

// An interrupted connection stays so, whatever sets a deadline at that moment,
// and a response is not touched after its handler.
func TestAnInterruptedConnectionStaysSo(t *testing.T) {
	for range 300 {
		w := &deadlineWriter{ResponseWriter: httptest.NewRecorder(), t: t}
		c := newConnection(w, time.Nanosecond) // arms each time
		var all sync.WaitGroup
		all.Go(func() {
			for range 20 {
				_ = c.arm()
			}
		})
		all.Go(func() {
			for range 20 {
				c.extend()
			}
		})
		all.Go(c.interrupt)
		time.Sleep(5 * time.Microsecond)
		if c.interrupted.Load() {
			require.ErrorIs(t, c.arm(), errClosed)
		}
		all.Wait()
		require.Equal(t, past, w.deadline)

		c.release()
		w.mu.Lock()
		w.released = true
		w.mu.Unlock()
		c.extend()
		c.interrupt()
	}
}

// A query of the rules of before does not hold up the new ones, which it did
// under a lock.
func TestAPlanInUseHoldsUpNobody(t *testing.T) {
	app, p := newReadsApp(t)
	saveRules(t, app, []shapedRule{{text: "@collection.memberships.user ?= @request.auth.id"}})
	d, err := p.rules.find(app, "r0/x")
	require.NoError(t, err)
	b, err := d.bind(app, actionSubscribe, "r0/x")
	require.NoError(t, err)
	old := d.plan(app, b, nil)
	require.NotNil(t, old)

	require.True(t, old.inUse.enter()) // its query runs
	p.rulesChanged()
	_, err = p.rules.find(app, "r0/x")
	require.NoError(t, err)
	_, err = old.allows(t.Context(), questionOf("", "", "r0/x", b.values))
	require.ErrorIs(t, err, errPlanEnded)
	rows, err := old.statement.Query(make([]any, len(old.values))...)
	require.NoError(t, err, "the statement is still there")
	require.NoError(t, rows.Err())
	require.NoError(t, rows.Close())

	require.True(t, old.inUse.leave(), "its last user ends it")
	old.end()
}
