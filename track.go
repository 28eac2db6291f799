package topics

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// track is how far one connection has come with a subscription, and what was
// sent beyond that without anybody knowing whether it has arrived: a network
// that is gone takes everything for a while.
type track struct {
	// certain is how far the client has come for certain, by when it was last
	// heard of or, of an ended connection, by its end.
	certain mark

	// marks are what was flushed to the connection, in time order. The first was
	// flushed long enough ago to be certain if the connection works.
	marks []mark

	// uncertain is what connections have flushed beyond it, in order.
	uncertain []uncertainMark
}

// uncertainMark is a message up to which everything was flushed, for the first
// time then, to so many connections.
type uncertainMark struct {
	mark
	times int
}

// maxUncertain bounds the marks of a track, and maxEnds those of connections of
// one position that nobody has come back from.
const (
	maxUncertain = 32
	maxEnds      = 8
)

func compareMarks(a, b mark) int {
	return cmp.Or(strings.Compare(a.epoch, b.epoch), cmp.Compare(a.offset, b.offset))
}

// add notes that everything up to m was flushed.
func (t *track) add(m mark, overlap time.Duration) {
	if n := len(t.marks); n > 0 && compareMarks(t.marks[n-1], m) >= 0 {
		return // of an earlier flush of two keys that were mixed
	}
	// two marks within an eighth of the overlap are as good as the later one
	if n := len(t.marks); n > 1 && m.at.Sub(t.marks[n-2].at) < overlap/8 {
		t.marks[n-1] = m
	} else {
		t.marks = append(t.marks, m)
	}
	t.settle(m.at, overlap)
}

// settle drops the marks before the newest one that is certain at that time.
func (t *track) settle(at time.Time, overlap time.Duration) {
	certain := 0
	for i, m := range t.marks {
		if at.Sub(m.at) >= overlap {
			certain = i
		}
	}
	t.marks = t.marks[certain:]
}

// hear says that the client was heard of just now.
func (t *track) hear(overlap time.Duration) {
	if len(t.marks) == 0 {
		return
	}
	t.settle(time.Now(), overlap)
	t.certain = t.marks[0]
}

// end returns the track of the connection as one that has ended now, or if it
// may have been dead, when it was last heard of.
func (t *track) end(dead bool, overlap time.Duration) *track {
	marks := slices.Clone(t.marks)
	ended := &track{certain: t.certain}
	if !dead {
		ended.marks = marks
		ended.settle(time.Now(), overlap)
		ended.certain, ended.marks = ended.marks[0], nil
	}

	last, newest := marks[len(marks)-1], ended.certain
	for _, u := range t.uncertain {
		if compareMarks(u.mark, ended.certain) <= 0 {
			continue
		}
		if compareMarks(u.mark, last) <= 0 {
			u.times++
		}
		ended.uncertain = append(ended.uncertain, u)
		newest = u.mark
	}
	for _, m := range marks {
		if compareMarks(m, newest) > 0 {
			ended.uncertain = append(ended.uncertain, uncertainMark{m, 1})
		}
	}
	for len(ended.uncertain) > maxUncertain {
		// every other one: less exact, and none is more certain than it was
		kept := ended.uncertain[:0]
		for i := 1; i < len(ended.uncertain); i += 2 {
			kept = append(kept, ended.uncertain[i])
		}
		ended.uncertain = kept
	}
	return ended
}

// next is the track of a connection that goes on from an ended one. Where
// connections are too short for anything to become certain, what was flushed
// twice, and long enough ago, is left out, and the client has to be told: that is
// skipped. It is not across epochs, where more may be missing.
func (t *track) next(now time.Time, overlap time.Duration) (next *track, skipped bool) {
	from, beyond := t.certain, t.uncertain
	for i, u := range t.uncertain {
		if u.times > 1 && now.Sub(u.at) >= overlap && u.epoch == t.certain.epoch {
			from, beyond, skipped = u.mark, t.uncertain[i+1:], true
		}
	}
	from.at = now
	return &track{certain: from, marks: []mark{from}, uncertain: slices.Clone(beyond)}, skipped
}

// flushedTo is up to where something was sent, whether or not it has arrived.
func (t *track) flushedTo() mark {
	to := t.certain
	if n := len(t.marks); n > 0 {
		to = t.marks[n-1]
	}
	if n := len(t.uncertain); n > 0 && compareMarks(t.uncertain[n-1].mark, to) > 0 {
		to = t.uncertain[n-1].mark
	}
	return to
}

// lose moves what is before the first message behind it.
func (t *track) lose() {
	t.certain.offset = max(t.certain.offset, 1)
	for i := range t.marks {
		t.marks[i].offset = max(t.marks[i].offset, 1)
	}
}
