package main

import (
	"io"
	"os"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The servers are this program too.
func TestMain(m *testing.M) {
	if k := os.Getenv(serveEnv); k != "" {
		os.Exit(status(serve(kind(k))))
	}
	os.Exit(m.Run())
}

// A short run with few connections: nothing is lost, nothing overtakes, and
// all subscribers of a topic see one order.
func TestNothingIsLostOrReordered(t *testing.T) {
	short := []string{"burst-http", "burst-loop", "closed-loop", "many-topics", "stalled-1%", "stalled-memory", "large-60", "storm", "memory", "history-20000", "history-replay", "history-recovery"}
	for _, s := range scenarios() {
		if !slices.Contains(short, s.name) {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			kind := s.kinds[len(s.kinds)-1] // the plugin, with what the scenario is about
			metrics, err := runOnce(options{duration: 300 * time.Millisecond, scale: 0.02}, s, kind)
			require.NoError(t, err)
			require.NotEmpty(t, metrics)
			for _, m := range metrics {
				if faults[m.name] {
					require.Zero(t, m.value, m.name)
				}
				if m.name == "connections left" {
					require.Zero(t, m.value)
				}
			}
		})
	}
}

// Both servers of the tables can be measured, and the tables have all of them.
func TestTable(t *testing.T) {
	results, err := run(options{
		scenario: regexp.MustCompile("^paced-50$"), rounds: 1, duration: 100 * time.Millisecond, scale: 0.01,
	}, io.Discard)
	require.NoError(t, err)
	require.Len(t, results, 1)
	require.Contains(t, results[0].table(), "| deliveries a second |")
	for _, k := range all {
		received, ok := find(results[0].metrics[k], "deliveries a second")
		require.True(t, ok, k)
		require.NotZero(t, received, k)
	}
}

func TestChecks(t *testing.T) {
	s := &subscriber{phases: map[uint32]*receipts{}, received: new(counter), topics: []string{"a"}}
	for _, n := range []uint32{1, 2, 4, 3, 3, 7} {
		s.receive(message{phase: 1, n: n})
	}
	r := s.phase(1)
	require.Equal(t, 6, r.count)
	require.Equal(t, 2, r.late)
	require.Equal(t, 3, r.missing, "3 when 4 came, 5 and 6")

	l := &lab{phase: 1, subscribers: []*subscriber{s}}
	seen := l.check(published{topics: map[string]int64{"a": 7}})
	require.EqualValues(t, 2, seen.late)
	require.EqualValues(t, 1, seen.lost)

	m, err := parseMessage(message{phase: 1, publisher: 2, n: 3, at: 4}.append(nil, "x"))
	require.NoError(t, err)
	require.Equal(t, message{phase: 1, publisher: 2, n: 3, at: 4}, m)
	_, err = parseMessage([]byte(`{}`))
	require.ErrorIs(t, err, errNotAMessage)
}
