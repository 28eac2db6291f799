package topics

import (
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// floods logs n lines of different subjects, and returns how many were let.
func floods(allow func(string) bool, name string, n int) (let int) {
	for i := range n {
		if allow(name + strconv.Itoa(i)) {
			let++
		}
	}
	return let
}

func TestLogBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var reports []int
		l := newLogLimiter(60, func(left int) { reports = append(reports, left) })
		defer l.close()
		report := func() (left []int) {
			synctest.Wait()
			left, reports = reports, nil
			return left
		}

		for range 3 { // periods
			require.Equal(t, 45, floods(l.allowRefusal, "refusal", 10_000))
			require.LessOrEqual(t, len(l.logged), 60)
			require.Len(t, l.order, len(l.logged))
			require.False(t, l.allowRefusal(""))

			require.True(t, l.allow("rule error"), "not pushed out by refusals")
			require.False(t, l.allow("rule error"), "once")
			require.False(t, l.allowRefusal("refusal1"), "once")
			require.Equal(t, 14, floods(l.allow, "error", 10_000), "the rest of the budget")

			time.Sleep(logPeriod - 1)
			require.Empty(t, report())
			require.False(t, l.allow("rule error"), "not forgotten for a flood")
			time.Sleep(time.Nanosecond)
			require.Equal(t, []int{10_000 - 45 + 1 + 10_000 - 14}, report())
			require.Nil(t, l.timer, "no timer when nothing was left out")
		}
		require.EqualValues(t, 3*(10_000-45+1+10_000-14), l.omitted())

		// a quiet time leaves nothing behind
		time.Sleep(time.Hour)
		require.True(t, l.allow("one"))
		require.Len(t, l.logged, 1)
		time.Sleep(time.Hour)
		require.Empty(t, report())
	})
}

// Each line counts, also those that are like no other.
func TestLogBudgetWithoutSubjects(t *testing.T) {
	l := newLogLimiter(4, nil)
	for range 3 {
		require.True(t, l.allowRefusal(""))
	}
	require.Empty(t, l.logged)
	require.True(t, l.allow(""))

	// the least budget is for errors
	l = newLogLimiter(1, func(int) {})
	defer l.close()
	require.False(t, l.allowRefusal("refusal"))
	require.True(t, l.allow("error"))
}

// What was left out at the end of the process is said then.
func TestLogLimiterCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var reports []int
		l := newLogLimiter(8, func(left int) { reports = append(reports, left) })
		floods(l.allowRefusal, "refusal", 10)
		l.close()
		l.close()
		require.Equal(t, []int{4}, reports)

		require.Equal(t, 8, floods(l.allow, "error", 10), "the end may be logged")
		time.Sleep(time.Hour)
		require.Equal(t, []int{4}, reports)
	})
}

func TestClip(t *testing.T) {
	long := ""
	for len(long) < 300 {
		long += "€"
	}
	for i := range 3 {
		require.Regexp(t, `^x*€+…$`, clip("xxx"[:i]+long))
	}
	require.Equal(t, "short", clip("short"))
}
