package main

import (
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The server and the burners are this program too.
func TestMain(m *testing.M) {
	if code, other := otherProcess(); other {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

func TestNothingIsLostSilently(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	f, err := run(options{seed: seed, duration: 5 * time.Second, subscribers: 24, loses: killLoses})
	t.Log(f)
	require.NoError(t, err)
	require.NotZero(t, f.delivered)
	require.NotZero(t, f.cuts)
	require.NotZero(t, f.restarts)
	require.NotZero(t, f.presence)
	require.NotZero(t, f.refused)
}

// starvedLoses is what a kill may lose while the disk's writer waits for the
// processor behind the burners and the other tests.
const starvedLoses = 5 * killLoses

// Nor when the server gets little of the processor.
func TestNothingIsLostSilentlyByAStarvedServer(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	f, err := run(options{seed: seed, duration: 4 * time.Second, subscribers: 12, burners: 2 * runtime.NumCPU(), loses: starvedLoses})
	t.Log(f)
	require.NoError(t, err)
	require.NotZero(t, f.delivered)
	require.NotZero(t, f.restarts)
}

// The checks find what they are there for.
func TestTheChecksFindFaults(t *testing.T) {
	begin := func() (*stress, *subscriber) {
		r := &stress{truth: newTruth(), crowd: newCrowd(killLoses)}
		for range 5 {
			r.truth.answer("many/1", r.truth.begin("many/1"))
		}
		s := &subscriber{run: r, topic: "many/1", user: "user0", resume: "r", started: time.Now().Add(-time.Hour), ids: map[int]string{}, skipped: map[int]bool{}}
		s.person = r.crowd.person("many/1", "user0", false, true)
		return r, s
	}
	gap := func(reason string, count int) envelope { return envelope{Type: "gap", Reason: reason, Count: &count} }
	message := func(n int) envelope { return envelope{Type: "message", ID: "e:" + string(rune('0'+n)), Data: n} }
	no := false

	for name, events := range map[string][]envelope{
		"a loss":             {message(1), message(3)},
		"a reordering":       {message(2), message(1)},
		"another id":         {message(1), {Type: "message", ID: "e:9", Data: 1}},
		"a forgotten resume": {{Type: "ready", Resumed: &no}},
		"an invented stop":   {gap("epoch", 1)},
		"an invented gap":    {gap("expired", 1)},
		"an empty gap":       {gap("slow", 0)},
	} {
		r, s := begin()
		for _, e := range events {
			s.receive(nil, e)
		}
		require.NotEmpty(t, r.truth.faults, name)
	}

	// a kill may lose what was answered right before it, and nothing else
	r, s := begin()
	r.truth.kills = []kill{{time.Now(), killLoses}}
	for _, e := range []envelope{message(1), gap("epoch", 1), message(3)} {
		s.receive(nil, e)
	}
	require.Empty(t, r.truth.faults)
	r, s = begin()
	r.truth.topics["many/1"].answered[2] = time.Now().Add(-killLoses)
	r.truth.kills = []kill{{time.Now(), killLoses}}
	for _, e := range []envelope{message(1), gap("epoch", 1), message(3)} {
		s.receive(nil, e)
	}
	require.Contains(t, strings.Join(r.truth.faults, "\n"), "before the kill")

	r, s = begin()
	s.person.member.taken = time.Now().Add(-time.Hour)
	s.receive(nil, message(1))
	require.NotEmpty(t, r.truth.faults, "a message without the right")

	r, s = begin()
	s.receive(nil, message(1))
	s.receive(nil, message(2))
	require.Empty(t, r.truth.faults)
}

// So do those about members.
func TestTheChecksOfMembersFindFaults(t *testing.T) {
	ago := func(d time.Duration) time.Time { return time.Now().Add(-d) }
	hour := ago(time.Hour)

	// ann watches; bob has certainly been there for a minute, cid never
	begin := func() (r *stress, s *subscriber, ann, bob *person) {
		r = &stress{truth: newTruth(), crowd: newCrowd(killLoses)}
		r.crowd.start = hour
		add := func(id string) *person {
			p := r.crowd.person("many/2", id, false, true)
			r.openToAll(p)
			p.member.given = hour
			return p
		}
		ann, bob = add("ann"), add("bob")
		add("cid").closed = hour
		for _, p := range []*person{ann, bob} {
			r.crowd.enter(r.crowd.come(p), p)
			p.here = ago(time.Minute)
		}
		s = &subscriber{run: r, topic: "many/2", user: "ann", person: ann, watches: true, sees: true, view: view{after: ago(10 * time.Second)}}
		return r, s, ann, bob
	}
	event := func(kind string, count int, ids ...string) envelope {
		e := envelope{Type: kind, Count: &count, Members: []shown{}}
		for _, id := range ids {
			m := shown{ID: id}
			if id != "guest" {
				m.Collection = "users"
			}
			e.Members = append(e.Members, m)
		}
		return e
	}
	both := event("presence", 2, "ann", "bob")
	stated := event("update", 2, "bob")
	stated.Members[0].State.N = 7
	number := event("presence", 20)
	number.Members = nil

	for name, c := range map[string]struct {
		events  []envelope
		fault   string // "" for none
		arrange func(s *subscriber, ann, bob *person)
	}{
		"nothing":                     {events: []envelope{both, event("join", 3, "guest"), event("leave", 2, "guest")}},
		"a number":                    {events: []envelope{number, both}},
		"a join of a known member":    {events: []envelope{both, event("join", 2, "bob")}, fault: "bob was known"},
		"an update of an unknown one": {events: []envelope{both, event("update", 2, "x")}, fault: "x was known"},
		"a leave of an unknown one":   {events: []envelope{both, event("leave", 2, "x")}, fault: "x was known"},
		"a join before a snapshot":    {events: []envelope{event("join", 1, "bob")}, fault: "does not know of anybody"},
		"a join without a list":       {events: []envelope{number, event("join", 3, "bob")}, fault: "does not know of anybody"},
		"a number of a few":           {events: []envelope{{Type: "presence", Count: both.Count}}, fault: "no list"},
		"a wrong number":              {events: []envelope{event("presence", 3, "ann", "bob")}, fault: "knows of 2"},
		"no number":                   {events: []envelope{{Type: "presence", Members: both.Members}}, fault: "no count"},
		"a flap":                      {events: []envelope{both, event("leave", 1, "bob")}, fault: "bob is there and does not show"},
		"a member who does not show":  {events: []envelope{event("presence", 1, "ann")}, fault: "bob is there and does not show"},
		"one who went away":           {events: []envelope{event("presence", 3, "ann", "bob", "cid")}, fault: "cid went away and shows"},
		"a stranger":                  {events: []envelope{event("presence", 3, "ann", "bob", "x")}, fault: "x is a stranger"},
		"another's state":             {events: []envelope{both, stated}, fault: "bob has not set state 7"},
		"one who lost access": {events: []envelope{both}, fault: "bob lost access and shows", arrange: func(s *subscriber, _, bob *person) {
			require.NoError(t, s.run.crowd.change(bob, &bob.member, false, func() error { return nil }))
			bob.member.taken = hour
		}},
		"one who lost access lately": {events: []envelope{both}, arrange: func(s *subscriber, _, bob *person) {
			require.NoError(t, s.run.crowd.change(bob, &bob.member, false, func() error { return nil }))
		}},
		"a watcher without the right": {events: []envelope{both}, fault: "lost the right to see", arrange: func(_ *subscriber, ann, _ *person) {
			ann.viewer = right{taken: hour}
		}},
		"a subscriber who has not asked": {events: []envelope{both}, fault: "has not asked", arrange: func(s *subscriber, _, _ *person) {
			s.watches = false
		}},
		"another id": {events: []envelope{{Type: "ready", Member: "bob"}}, fault: "is told that it is"},
	} {
		r, s, ann, bob := begin()
		if c.arrange != nil {
			c.arrange(s, ann, bob)
		}
		for _, e := range c.events {
			s.receive(nil, e)
		}
		if c.fault == "" {
			require.Empty(t, r.truth.faults, name)
		} else {
			require.Contains(t, strings.Join(r.truth.faults, "\n"), c.fault, name)
		}
	}

	// who is in the grace, or is back after a restart, is there
	r, s, ann, bob := begin()
	for v := range bob.visits {
		r.crowd.end(v)
	}
	s.receive(nil, both)
	require.Empty(t, r.truth.faults)
	r.crowd.stop(true)
	r.crowd.resume()
	r.crowd.enter(r.crowd.come(ann), ann)
	s.receive(nil, both)
	require.Empty(t, r.truth.faults)
	s.receive(nil, event("leave", 1, "bob"))
	require.NotEmpty(t, r.truth.faults)

	// but not after that
	r, s, _, bob = begin()
	for v := range bob.visits {
		r.crowd.end(v)
	}
	bob.left, bob.closed = ago(grace-noticing), ago(time.Minute)
	s.receive(nil, event("presence", 1, "ann"))
	require.Empty(t, r.truth.faults)
	s.receive(nil, event("join", 2, "bob"))
	require.NotEmpty(t, r.truth.faults)
}
