package topics

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

const testOverlap = 4 * time.Second

// positionTest drives a position through connections, in virtual time.
type positionTest struct {
	t *testing.T
	p *position
}

func newPositionTest(t *testing.T) *positionTest { return &positionTest{t, &position{id: "p"}} }

func at(offset uint64) mark { return mark{epoch: "e", offset: offset, at: time.Now()} }

// connect takes the position, and starts it at 10 if it is new.
func (pt *positionTest) connect() (s *subscription, from uint64, skipped bool) {
	s = new(subscription)
	r, ok := pt.p.take(s, testOverlap)
	if !ok {
		pt.p.start(s, at(10))
		return s, 10, false
	}
	return s, r.from.offset, r.skipped != nil
}

// flush flushes one message a tenth of a second.
func (pt *positionTest) flush(s *subscription, from, to uint64) {
	for offset := from; offset <= to; offset++ {
		pt.p.flushed(s, at(offset), testOverlap)
		time.Sleep(100 * time.Millisecond)
		if open := pt.p.open[s]; open != nil {
			require.LessOrEqual(pt.t, len(open.marks), 16, "bounded")
		}
	}
}

func (pt *positionTest) leave(s *subscription) { pt.p.leave(s, false, testOverlap) }

// A message counts as received when it was flushed long enough before the end of
// its connection, however long ago that was.
func TestAPositionIsFrozenAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pt := newPositionTest(t)
		s, _, _ := pt.connect()
		pt.flush(s, 11, 100)
		pt.leave(s)
		time.Sleep(time.Hour)
		s, from, _ := pt.connect()
		require.InDelta(t, 60, from, 6)
		require.LessOrEqual(t, from, uint64(60))

		// three messages that never arrive, an end 2 s later, and a return after 12 s
		pt.flush(s, from+1, 120)
		time.Sleep(time.Minute)
		pt.flush(s, 121, 123)
		time.Sleep(testOverlap / 2)
		pt.leave(s)
		time.Sleep(3 * testOverlap)
		_, from, skipped := pt.connect()
		require.EqualValues(t, 120, from)
		require.False(t, skipped, "they were flushed once")
	})
}

// A flush to a connection that was dead says nothing: what counts is when its
// client was last heard of.
func TestADeadConnectionMakesNothingCertain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pt := newPositionTest(t)
		s, _, _ := pt.connect()
		pt.flush(s, 11, 60)
		time.Sleep(testOverlap)
		pt.p.hear(s, testOverlap)
		pt.flush(s, 61, 200)
		pt.p.leave(s, true, testOverlap)
		_, from, _ := pt.connect()
		require.EqualValues(t, 60, from)
	})
}

// Who comes while another connection has the position may be the same client,
// or another one: neither loses anything.
func TestAPositionOfTwo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pt := newPositionTest(t)
		first, _, _ := pt.connect()
		pt.flush(first, 11, 100)
		second, from, _ := pt.connect()
		require.EqualValues(t, 10, from, "the first has not been heard of since its start")
		pt.flush(second, 101, 200)
		pt.flush(first, 101, 110)
		pt.leave(first) // certain up to some 70
		time.Sleep(time.Minute)
		pt.flush(second, 201, 300)
		pt.leave(second) // up to some 260

		s, from, _ := pt.connect()
		require.Less(t, from, uint64(101), "the earlier one")
		other, from, _ := pt.connect()
		require.Less(t, from, uint64(101), "the first still seems to live")
		pt.leave(s)
		pt.leave(other)
		for range 20 {
			s, _, _ = pt.connect()
			other, _, _ = pt.connect()
			pt.leave(s)
			pt.leave(other)
			require.LessOrEqual(t, len(pt.p.ends), maxEnds)
		}
	})
}

// Connections that are all shorter than the overlap do not repeat everything
// since the first one for ever: what was flushed twice is left out, and said.
func TestShortConnectionsMoveOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pt := newPositionTest(t)
		sent, told, from := uint64(10), false, uint64(0)
		for range 50 {
			s, begin, skipped := pt.connect()
			require.GreaterOrEqual(t, begin, from, "never backwards")
			if begin > from && from > 0 {
				require.True(t, skipped, "nothing is left out silently")
				told = true
			}
			from = begin
			pt.p.flushed(s, at(sent), testOverlap) // the replay
			for range 15 {
				sent++
				pt.flush(s, sent, sent)
			}
			pt.leave(s)
			require.Less(t, sent-from, uint64(150), "repeats are bounded")
			for _, end := range pt.p.ends {
				require.LessOrEqual(t, len(end.uncertain), maxUncertain)
			}
		}
		require.True(t, told)
	})
}

// A flush that two keys shared is not a step back.
func TestPositionsGoForward(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pt := newPositionTest(t)
		s, _, _ := pt.connect()
		pt.p.flushed(s, at(90), testOverlap)
		pt.p.flushed(s, at(80), testOverlap)
		time.Sleep(testOverlap)
		pt.leave(s)
		_, from, _ := pt.connect()
		require.EqualValues(t, 90, from)
	})
}
