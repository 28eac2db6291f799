package main

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The server is this program too.
func TestMain(m *testing.M) {
	if dir := os.Getenv(serveEnv); dir != "" {
		os.Exit(status(serve(dir, os.Getenv(addressEnv))))
	}
	os.Exit(m.Run())
}

func TestNothingIsLostSilently(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	f, err := run(options{seed: seed, duration: 5 * time.Second, subscribers: 24})
	t.Log(f)
	require.NoError(t, err)
	require.NotZero(t, f.delivered)
	require.NotZero(t, f.cuts)
	require.NotZero(t, f.restarts)
}

// The checks find what they are there for.
func TestTheChecksFindFaults(t *testing.T) {
	begin := func() (*stress, *subscriber) {
		r := &stress{truth: newTruth()}
		for range 5 {
			r.truth.answer("many/1", r.truth.begin("many/1"))
		}
		return r, &subscriber{run: r, topic: "many/1", resume: "r", started: true, ids: map[int]string{}, skipped: map[int]bool{}}
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
			s.receive(e)
		}
		require.NotEmpty(t, r.truth.faults, name)
	}

	r, s := begin()
	s.removed = time.Now().Add(-time.Hour)
	s.receive(message(1))
	require.NotEmpty(t, r.truth.faults, "a message without the right")

	r, s = begin()
	s.receive(message(1))
	s.receive(message(2))
	require.Empty(t, r.truth.faults)
}
