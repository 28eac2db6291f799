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
	short := []string{"burst-http", "many-topics", "stalled-1%", "large-60", "storm", "history-20000", "history-replay", "history-recovery"}
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
			}
		})
	}
}

// A publisher that never pauses, and 1,000 clients that do not read: what the
// server keeps for them is bounded, and it returns to its former size.
func TestMemoryOfStalledClients(t *testing.T) {
	metrics, err := runOnce(options{scale: 1}, scenario{name: "stalled-memory", run: stalledMemory(60 << 10)}, plugin)
	require.NoError(t, err)

	get := func(name string) float64 {
		v, ok := find(metrics, name)
		require.True(t, ok, name)
		return v
	}
	require.Zero(t, get("connections left"))
	require.EqualValues(t, 1000, get("closed as slow consumers")+get("closed by the write deadline"))
	connected := get("heap with all connected, MB")
	require.Less(t, get("largest heap, MB"), connected+200, "with queues of up to 1 MiB for each client")
	require.Less(t, get("heap after they were closed, MB"), get("heap before, MB")+8)
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
