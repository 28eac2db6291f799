package topics

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tests"
	"github.com/stretchr/testify/require"
)

// slowWrite takes its time, on a machine without CPU left.
type slowWrite struct{ applied *int }

func (slowWrite) size() int { return 1 }

func (w slowWrite) apply(*diskTx) error {
	time.Sleep(diskBatchTime / 4)
	*w.applied++
	return nil
}

func openDisk(t *testing.T) (*disk, core.App) {
	t.Helper()
	app, err := tests.NewTestApp()
	require.NoError(t, err)
	t.Cleanup(app.Cleanup)
	d := newDisk(1<<20, func(_ core.App, err error) { t.Log(err) })
	_, err = d.prepare(app, 10)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, d.close(context.Background(), app, nil, nil)) })
	return d, app
}

// However slowly messages are written, a commit is soon, and members and
// positions are in the next one.
func TestACommitIsSoon(t *testing.T) {
	d, _ := openDisk(t)
	applied := 0
	for range 100 {
		d.addMessage(slowWrite{&applied})
	}
	start := time.Now()
	number := d.addState("p", &positionWrite{savedPosition{id: "p"}})
	d.waitForStates(context.Background(), number)
	d.mu.Lock()
	done := d.messages.done
	d.mu.Unlock()
	require.Less(t, done, uint64(50), "it did not wait for all messages")
	require.Less(t, time.Since(start), 20*diskBatchTime)
	_, lag := d.backlog()
	require.Positive(t, lag)
}

// A newer position takes the place of one that waits, but never moves before
// the end of a topic that came in between.
func TestStatesAreWrittenOnceAndInOrder(t *testing.T) {
	d := newDisk(1<<20, nil)
	d.ready = true
	position := func(n uint64) *positionWrite { return &positionWrite{savedPosition{id: "p", offset: n}} }
	for n := range uint64(10) {
		d.addState("p", position(n))
		d.addState(fmt.Sprint("q", n), position(n))
	}
	require.Len(t, d.states.pending, 11)
	require.Equal(t, position(9), d.states.pending[0])
	d.addState("", membersEnd{glob: "a"})
	d.addState("p", position(10))
	require.Equal(t, position(10), d.states.pending[12])
	require.Equal(t, position(9), d.states.pending[0])
}

// What waits is bounded in bytes, and ends of topics are never left out.
func TestTheBacklogIsBounded(t *testing.T) {
	d := newDisk(1000, nil)
	d.ready = true
	e := newEntry(Message{Topic: "a", Data: []byte("1")})
	for range 10 {
		d.addMessage(messageWrite{entry: e})
	}
	require.True(t, d.broken)
	require.Len(t, d.messages.pending, 1)
	d.addMessage(logEnd{"a"})
	require.Len(t, d.messages.pending, 2)
}

// A disk that fails is an error for each commit, which is for the log to count.
func TestAFailedCommitLeavesNothingHalfDone(t *testing.T) {
	d, app := openDisk(t)
	failed := errors.New("no such table")
	warned := make(chan error, 10)
	d.warn = func(_ core.App, err error) { warned <- err }
	d.addMessage(messageWrite{entry: newEntry(Message{Topic: "a", Data: []byte("1")}), head: logHead{topic: "a", epoch: "e", first: 1, last: 1}})
	d.addMessage(failingWrite{failed})
	require.ErrorIs(t, <-warned, failed)
	var count int
	require.NoError(t, app.AuxDB().NewQuery("SELECT count(*) FROM _topicsMessages").Row(&count))
	if count > 0 { // they were in two commits
		require.Equal(t, 1, count)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	require.True(t, d.broken)
}

type failingWrite struct{ err error }

func (failingWrite) size() int             { return 1 }
func (w failingWrite) apply(*diskTx) error { return w.err }

// A position that no subscription takes expires, as one does that was let go.
func TestPositionsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config := Config{ResumeFor: time.Hour, MaxPositionsPerSubscriber: 2}.withDefaults()
		ps := newPositions(config)
		never, _ := ps.of("never taken", "a", "ann", mark{})
		taken, _ := ps.of("taken", "a", "ann", mark{})
		s := new(subscription)
		taken.take(s, config.ResumeOverlap)
		time.Sleep(59 * time.Minute)
		ps.sweep(time.Now())
		require.Len(t, ps.byID, 2)
		time.Sleep(2 * time.Minute)
		ps.sweep(time.Now())
		require.NotContains(t, ps.byID, never.id)
		require.Contains(t, ps.byID, taken.id, "it is held")
		ps.release(taken, s, false)
		time.Sleep(61 * time.Minute)
		again, _ := ps.of("taken", "a", "ann", mark{})
		require.NotSame(t, taken, again, "it had expired")

		// one owner's push out its own only
		other, _ := ps.of("other", "a", "bob", mark{})
		for i := range 10 {
			ps.of(fmt.Sprint(i), "a", "ann", mark{})
		}
		require.Len(t, ps.byID, 3)
		require.Contains(t, ps.byID, other.id)
		require.Empty(t, ps.byTopic["b"])
		ps.forgetTopic("a")
		require.Empty(t, ps.byID)
		require.Empty(t, ps.byOwner)
		require.Empty(t, ps.byTopic)
	})
}

type panickingWrite struct{}

func (panickingWrite) size() int           { return 1 }
func (panickingWrite) apply(*diskTx) error { panic("a driver") }

// A panic while writing ends neither the process nor the writing.
func TestAPanicOfTheDisk(t *testing.T) {
	d, _ := openDisk(t)
	panics := make(chan error, 10)
	d.guard = &guard{report: func(_ string, err error) { panics <- err }}
	d.addMessage(panickingWrite{})
	require.ErrorIs(t, <-panics, errPanicked)
	d.waitForStates(context.Background(), d.addState("p", &positionWrite{savedPosition{id: "p"}}))
	d.mu.Lock()
	defer d.mu.Unlock()
	require.True(t, d.broken, "the next start begins with a gap")
	require.Equal(t, d.states.added, d.states.done)
}
