package topics

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestCommitsKeepTheirOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCommits()
		var sent []string
		send := func(what string) func() { return func() { sent = append(sent, what) } }

		first, second, third, other := c.join("a", nil), c.join("a", nil), c.join("a", nil), c.join("b", nil)
		third.arrive(send("third"))
		other.arrive(send("other"))
		require.Equal(t, []string{"other"}, sent, "another topic's line")
		second.leave()
		require.Equal(t, []string{"other"}, sent)
		first.arrive(send("first"))
		require.Equal(t, []string{"other", "first", "third"}, sent)
		require.Empty(t, c.lines)
		c.close()
	})
}

// A transaction whose end is told late, or never, holds nobody up for long,
// and its message is sent when it comes.
func TestCommitsDoNotWaitForever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCommits()
		var (
			mu   sync.Mutex
			list []string
		)
		send := func(what string) func() {
			return func() {
				mu.Lock()
				defer mu.Unlock()
				list = append(list, what)
			}
		}
		sent := func() []string {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(list)
		}

		late, next := c.join("a", nil), c.join("a", nil)
		next.arrive(send("next"))
		require.Empty(t, sent())
		time.Sleep(commitPatience)
		synctest.Wait()
		require.Equal(t, []string{"next"}, sent())
		late.arrive(send("late"))
		require.Equal(t, []string{"next", "late"}, sent())

		c.join("a", nil).arrive(send("again"))
		require.Equal(t, "again", sent()[2])
		require.Empty(t, c.lines)

		// the wait ends with the app
		_, stuck := c.join("b", nil), c.join("b", nil)
		stuck.arrive(send("never"))
		start := time.Now()
		c.close()
		c.close()
		require.Zero(t, time.Since(start))
		require.Len(t, sent(), 3)
	})
}

func TestAPanicWhileSendingEndsNothingElse(t *testing.T) {
	c := newCommits()
	require.Panics(t, func() { c.join("a", nil).arrive(func() { panic("sending") }) })
	sent := false
	c.join("a", nil).arrive(func() { sent = true })
	require.True(t, sent)
}
