package main

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The server and the attackers are this program too.
func TestMain(m *testing.M) {
	if code, other := otherProcess(); other {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// A short run looks for what does not depend on the machine: histories, bounds,
// and that nobody honest is refused or left out.
func TestAttackersChangeNothingForOthers(t *testing.T) {
	f, err := run(options{seed: uint64(time.Now().UnixNano()), duration: 10 * time.Second, rate: 25, proxied: true, lenient: true})
	require.NoError(t, err)
	t.Log("\n" + f.String())
	require.Empty(t, f.faults)
	require.NotZero(t, f.recovered)
	require.NotZero(t, f.attacked.Connects)
	require.Greater(t, len(f.attacked.Kinds), 4) // on a slow machine not many of them have their turn
}

// The checks find what they are there for.
func TestTheChecksFindFaults(t *testing.T) {
	const topic = "room/1"
	no := false
	text := func(kind, id string, n int) event {
		return event{Type: kind, Topic: topic, ID: id, Data: message{N: n, Text: honestText}}
	}
	for name, c := range map[string]struct {
		events []event
		fault  string // "" for none
	}{
		"what was sent":    {events: []event{text("ready", "", 0), text("message", "e:1", 0), text("message", "e:1", 0)}},
		"a gap":            {events: []event{{Type: "gap", Topic: topic, Reason: "evicted"}}, fault: "gap"},
		"no certain gap":   {events: []event{{Type: "gap", Topic: topic, Reason: "repeated", Certain: &no}, text("message", "e:1", 0)}},
		"a refusal":        {events: []event{{Type: "denied", Topic: "wide/1", Code: "topic_denied"}}, fault: "denied"},
		"a lost position":  {events: []event{text("ready", "", 0), {Type: "ready", Topic: topic, Resumed: &no}}, fault: "not resumed"},
		"another id":       {events: []event{text("message", "e:2", 0)}, fault: "but it is e:1"},
		"two ids":          {events: []event{text("message", "e:2", 1), text("message", "e:3", 1)}, fault: "as e:2 and as e:3"},
		"a forged message": {events: []event{text("message", "e:9", 9)}, fault: "nobody has sent"},
	} {
		p := &person{truth: newTruth(), user: "ann", room: topic, timed: true, seen: map[int]string{}}
		for range 2 {
			p.truth.begin(topic, time.Now())
		}
		p.truth.answer(topic, 0, "e:1")
		for _, e := range c.events {
			p.receive(e)
		}
		if c.fault == "" {
			require.Empty(t, p.truth.faults, name)
			require.Len(t, p.truth.samples, 1, name)
		} else {
			require.Contains(t, strings.Join(p.truth.faults, "\n"), c.fault, name)
		}
	}

	// somebody who lacks messages
	p := &person{truth: newTruth(), room: topic, seen: map[int]string{}, ready: time.Now()}
	for i := range 3 {
		p.truth.answer(topic, p.truth.begin(topic, time.Now()), "e:"+string(rune('1'+i)))
	}
	p.seen[0] = "e:1"
	missing, first, all := p.missing()
	require.Equal(t, []int{2, 1, 3}, []int{missing, first, all})

	// a history
	r := &abuse{truth: newTruth()}
	r.compare("kept", []string{"1", "2"}, []string{"1", "2"})
	require.Empty(t, r.lossy)
	require.Empty(t, r.truth.faults)
	r.compare("mixed", []string{"1", "2"}, []string{"2", "1"})
	require.Contains(t, strings.Join(r.truth.faults, "\n"), "another order")
	r.compare("lost", []string{"1", "2"}, []string{"2"})
	require.Len(t, r.lossy, 1)
	require.Equal(t, 1, r.keptLost)
}

// A figure beyond its limit is a fault.
func TestFiguresHaveLimits(t *testing.T) {
	start := time.Now().Add(-time.Minute)
	begin := func() *abuse {
		r := &abuse{truth: newTruth(), loser: new(loser)}
		r.resetPeak()
		r.baselineFrom, r.attackFrom, r.attackTo = start, start.Add(10*time.Second), start.Add(40*time.Second)
		for i := range 400 {
			r.truth.samples = append(r.truth.samples, sample{kind: "room", due: start.Add(time.Duration(i) * 100 * time.Millisecond), took: time.Millisecond})
		}
		r.loser.losses = []loss{{at: r.attackFrom, told: time.Millisecond}}
		return r
	}
	r := begin()
	r.check()
	require.Empty(t, r.faults)
	require.NotContains(t, r.figures.String(), "exceeded")

	// unless it is a time, and another program has slowed the machine down
	r = begin()
	for i := range r.truth.samples[200:] {
		r.truth.samples[200+i].took = time.Second
	}
	r.during.Machine = 20 * time.Second
	r.check()
	require.Empty(t, r.faults)
	require.Contains(t, r.figures.String(), "not judged")

	for name, c := range map[string]struct {
		spoil func(r *abuse)
		fault string
	}{
		"slow messages": {func(r *abuse) {
			for i := range r.truth.samples[200:] {
				r.truth.samples[200+i].took = slowdown*floor + time.Millisecond
			}
		}, "messages of room/, p99"},
		"no messages":          {func(r *abuse) { r.truth.samples = r.truth.samples[:100] }, "no messages were measured"},
		"a late revocation":    {func(r *abuse) { r.loser.losses[0].told = told + 1 }, "revocation"},
		"no revocation":        {func(r *abuse) { r.loser.losses = nil }, "no revocation"},
		"a lost history":       {func(r *abuse) { r.keptLost = 1 }, "messages lost"},
		"memory":               {func(r *abuse) { r.peak.RSS = memoryBound() + 1 }, "resident memory"},
		"what stays in memory": {func(r *abuse) { r.after.Heap = memoryBound() }, "live heap"},
		"disk":                 {func(r *abuse) { r.peak.Disk = diskBound(0) + 1 }, "auxiliary.db,"},
		"the write-ahead log":  {func(r *abuse) { r.after.WriteAhead = writeAheadBytes + 1 }, "auxiliary.db-wal"},
		"many lines":           {func(r *abuse) { r.after.Lines = 1000 }, "lines in the log"},
		"a long line":          {func(r *abuse) { r.after.Longest = longestLine + 1 }, "longest line"},
		"goroutines":           {func(r *abuse) { r.after.Goroutines = 1000 }, "goroutines"},
		"members":              {func(r *abuse) { r.crowd = 1000 }, "members of open/square"},
		"a full history":       {func(r *abuse) { r.peak.Stats["historyBytes"] = 1e12 }, "historyBytes"},
		"failures":             {func(r *abuse) { r.attacked.Kinds = map[string]*tally{"flood": {Failed: 1}} }, "status of 5xx"},
		"duplicate keys":       {func(r *abuse) { r.attacked.Kinds = map[string]*tally{duplicates: {Taken: 1}} }, "duplicate keys"},
	} {
		r := begin()
		c.spoil(r)
		r.check()
		require.Contains(t, strings.Join(r.faults, "\n"), c.fault, name)
	}
}
