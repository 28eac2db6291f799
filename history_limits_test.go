package topics_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

func auxCount(t testing.TB, app core.App, from string) (count int) {
	t.Helper()
	topics.SettleHistory(app)
	require.NoError(t, app.AuxDB().NewQuery("SELECT count(*) FROM "+from).Row(&count))
	return count
}

// holdAux keeps everybody else from writing to the auxiliary database, as a
// backup does.
func holdAux(t testing.TB, app core.App) (letGo func()) {
	t.Helper()
	held, release, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		_ = app.AuxRunInTransaction(func(tx core.App) error {
			_, err := tx.AuxDB().NewQuery("DELETE FROM _logs WHERE id = 'none'").Execute()
			close(held)
			<-release
			return err
		})
	}()
	<-held
	var once sync.Once
	letGo = func() { once.Do(func() { close(release) }); <-done }
	t.Cleanup(letGo)
	return letGo
}

// What a rule no longer keeps goes when it changes, also of topics that nobody
// has used since the start: a later rule that is more public does not show it.
func TestARuleThatKeepsLessDeletes(t *testing.T) {
	changes := map[string]func(t *testing.T, app core.App, rule *core.Record) int{ // what is left of 5
		"none": func(t *testing.T, app core.App, rule *core.Record) int {
			rule.Set("history", 0)
			require.NoError(t, app.Save(rule))
			return 0
		},
		"fewer": func(t *testing.T, app core.App, rule *core.Record) int {
			rule.Set("history", 2)
			require.NoError(t, app.Save(rule))
			return 2
		},
		"for a shorter time": func(t *testing.T, app core.App, rule *core.Record) int {
			rule.Set("historyTTL", 1)
			require.Eventually(t, func() bool {
				rule.Set("description", time.Now().String())
				require.NoError(t, app.Save(rule))
				return auxCount(t, app, "_topicsMessages") == 0
			}, patience, 200*time.Millisecond)
			return 0
		},
		"the rule deleted": func(t *testing.T, app core.App, rule *core.Record) int {
			require.NoError(t, app.Delete(rule))
			return 0
		},
	}
	for name, change := range changes {
		for _, when := range []string{"while it serves", "while it is stopped"} {
			t.Run(name+" "+when, func(t *testing.T) {
				app := newApp(t, topics.Config{})
				serve(t, app)
				define(t, app, map[string]any{"pattern": "a/{x}", "subscribeRule": "", "history": 10})
				notifyAll(t, app, "a/1", 1, 5)

				var left int
				if when == "while it serves" {
					app, _ = restart(t, app, topics.Config{}, true) // nothing is in memory
					left = change(t, app, findRule(t, app, "a/{x}"))
				} else {
					if name == "for a shorter time" {
						return // the same as a change at the start
					}
					require.NoError(t, app.OnTerminate().Trigger(&core.TerminateEvent{App: app}))
					idle := newAppIn(t, app.DataDir(), topics.Config{}) // does not serve
					left = change(t, idle, findRule(t, idle, "a/{x}"))
					app, _ = restart(t, idle, topics.Config{}, true)
				}
				require.Equal(t, left, auxCount(t, app, "_topicsMessages"))

				if rules, err := app.FindAllRecords("_topics"); err == nil && len(rules) > 0 {
					require.NoError(t, app.Delete(rules[0]))
				}
				define(t, app, map[string]any{"pattern": "{any...}", "subscribeRule": "", "history": 100})
				require.Empty(t, historyOf(t, app, "a/1"), "the more public rule shows nothing of it")
			})
		}
	}
}

func findRule(t testing.TB, app core.App, pattern string) *core.Record {
	t.Helper()
	r, err := app.FindFirstRecordByData("_topics", "pattern", pattern)
	require.NoError(t, err)
	return r
}

// Rules that cannot be read say nothing about histories: nothing is deleted, and
// whoever sends is told.
func TestUnreadRulesDeleteNoHistory(t *testing.T) {
	breaks := map[string]struct {
		fail, mend func(t *testing.T, app core.App)
	}{
		"the table cannot be read": {
			func(t *testing.T, app core.App) { sql(t, app, "ALTER TABLE _topics RENAME TO hidden") },
			func(t *testing.T, app core.App) { sql(t, app, "ALTER TABLE hidden RENAME TO _topics") },
		},
		"the collection is missing": {
			func(t *testing.T, app core.App) {
				sql(t, app, "UPDATE _collections SET id = 'hidden' WHERE id = '_pb_topics_'")
				require.NoError(t, app.ReloadCachedCollections())
			},
			func(t *testing.T, app core.App) {
				sql(t, app, "UPDATE _collections SET id = '_pb_topics_' WHERE id = 'hidden'")
				require.NoError(t, app.ReloadCachedCollections())
			},
		},
	}
	for name, b := range breaks {
		t.Run(name, func(t *testing.T) {
			app := newApp(t, topics.Config{})
			s := serve(t, app)
			define(t, app, map[string]any{"pattern": "a/{x}", "subscribeRule": "", "publishRule": "", "history": 10})
			notifyAll(t, app, "a/1", 1, 5)
			notifyAll(t, app, "a/2", 1, 5)

			b.fail(t, app)
			newCollection(t, app, "bump") // the rules are read again
			require.ErrorIs(t, topics.Notify(app, "a/1", "lost?"), topics.ErrUnavailable)
			r := s.publish("", `{"topic":"a/1","data":1}`)
			require.GreaterOrEqual(t, r.status, 400, r.body)
			_, err := topics.History(app, "a/1", topics.HistoryOptions{})
			require.Error(t, err)
			topics.ReviewHistories(app)

			b.mend(t, app)
			newCollection(t, app, "bump2")
			require.Len(t, historyOf(t, app, "a/1"), 5)
			require.Len(t, historyOf(t, app, "a/2"), 5)
			require.Equal(t, 10, auxCount(t, app, "_topicsMessages"))
		})
	}
}

// Names that somebody invents keep nothing and cost others nothing.
func TestInventedNamesKeepNothing(t *testing.T) {
	app := newApp(t, topics.Config{MaxTopics: 5, MaxPositions: 100, MaxSubscriptions: 10_000})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "a/{x}", "subscribeRule": "", "publishRule": "", "history": 10})
	for i := range 5 {
		notifyAll(t, app, fmt.Sprint("a/real", i), 1, 3)
	}

	for round := range 4 {
		c := s.connect()
		var keys []string
		for i := range 250 {
			keys = append(keys, key(fmt.Sprintf("a/%d-%d", round, i), map[string]any{"replay": 5, "envelope": true, "resume": fmt.Sprint("r", i)}))
		}
		c.mustSubscribe("", keys...)
		c.disconnect()
		r := s.request(http.MethodGet, fmt.Sprintf("/api/topics/history?topic=a/x%d", round), "", "")
		require.Equal(t, http.StatusOK, r.status)
	}
	stats := topics.From(app).Stats()
	require.Equal(t, 5, stats.Histories)
	require.LessOrEqual(t, stats.Positions, 100)
	require.Positive(t, stats.PositionsEvicted)
	require.LessOrEqual(t, auxCount(t, app, "_topicsPositions"), 100, "the disk has the same limit")
	require.Equal(t, 5, auxCount(t, app, "_topicsLogs"))
	for i := range 5 {
		require.Len(t, historyOf(t, app, fmt.Sprint("a/real", i)), 3)
	}
}

// What one sender may begin is limited; what others and the server send is not.
func TestTopicsOfOneSender(t *testing.T) {
	app := newApp(t, topics.Config{MaxTopicsPerSender: 3})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "a/{x}", "subscribeRule": "", "publishRule": "", "history": 10})
	define(t, app, map[string]any{"pattern": "live/{x}", "publishRule": ""})
	_, ann := newUser(t, app, "ann")
	_, bob := newUser(t, app, "bob")
	root := newSuperuser(t, app)
	publish := func(token, topic string) reply {
		return s.publish(token, fmt.Sprintf(`{"topic":%q,"data":1}`, topic))
	}

	for i := range 3 {
		require.Equal(t, 200, publish(ann, fmt.Sprint("a/ann", i)).status)
	}
	r := publish(ann, "a/ann3")
	require.Equal(t, 403, r.status, r.body)
	require.Equal(t, "sender_topics_exceeded", r.code("topic"))
	require.Equal(t, 200, publish(ann, "a/ann1").status, "it is there")
	require.Equal(t, 200, publish(ann, "live/x").status, "it keeps nothing")

	// all or none of a batch
	r = s.publish(bob, `{"messages":[{"topic":"a/bob0","data":1},{"topic":"a/bob1","data":1},{"topic":"a/bob2","data":1},{"topic":"a/bob3","data":1}]}`)
	require.Equal(t, 403, r.status, r.body)
	require.Equal(t, "sender_topics_exceeded", r.code("messages", "0", "topic"))
	require.Empty(t, historyOf(t, app, "a/bob0"))
	require.Equal(t, 200, publish(bob, "a/ann3").status)

	for i := range 5 {
		require.Equal(t, 200, publish(root, fmt.Sprint("a/root", i)).status)
		require.NoError(t, topics.Notify(app, fmt.Sprint("a/app", i), 1))
	}
	require.Positive(t, topics.From(app).Stats().TopicsRefused)

	// over a restart too
	topics.SettleHistory(app)
	_, s = restart(t, app, topics.Config{MaxTopicsPerSender: 3}, true)
	require.Equal(t, "sender_topics_exceeded", publish(ann, "a/ann5").code("topic"))
}

// Memory that is short leaves messages to the disk, and they are read when they
// are needed.
func TestHistoriesBeyondTheMemoryAreOnTheDisk(t *testing.T) {
	config := topics.Config{HistoryTotalBytes: 64 << 10, ResumeOverlap: -1}
	app := newApp(t, config)
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "a/{x}", "subscribeRule": "", "history": 100})
	k := key("a/0", map[string]any{"resume": "r"})
	c := s.connect()
	c.mustSubscribe("", k)
	require.Equal(t, "ready", story(t, c.drain()))
	c.disconnect()
	waitForClients(t, app, 0)

	for round := 1; round <= 10; round++ {
		for i := range 40 {
			notifyAll(t, app, fmt.Sprint("a/", i), round, round)
		}
		topics.SettleHistory(app)
	}
	notifyAll(t, app, "a/39", 11, 11)
	stats := topics.From(app).Stats()
	require.LessOrEqual(t, stats.HistoryBytes, config.HistoryTotalBytes)
	require.Equal(t, 40, stats.Histories)
	require.Zero(t, stats.HistoriesEvicted)

	// a message to a topic that is on the disk only comes after the others
	notifyAll(t, app, "a/0", 11, 12)
	c = s.connect()
	c.mustSubscribe("", k)
	require.Equal(t, "ready 1 2 3 4 5 6 7 8 9 10 11 12 recovered", story(t, c.drain()))
	for i := range 38 {
		require.Len(t, historyOf(t, app, fmt.Sprint("a/", i+1)), 10)
		last := s.connect()
		last.mustSubscribe("", key(fmt.Sprint("a/", i+1), map[string]any{"envelope": true, "replay": 3}))
		require.Equal(t, "ready 8 9 10", story(t, last.drain()))
		last.disconnect()
	}
}

// The disk has a limit of its own.
func TestHistoryDiskBytes(t *testing.T) {
	config := topics.Config{HistoryDiskBytes: 100 << 10}
	app := newApp(t, config)
	serve(t, app)
	define(t, app, map[string]any{"pattern": "a/{x}", "subscribeRule": "", "history": 10})
	for i := range 200 {
		require.NoError(t, topics.Notify(app, fmt.Sprint("a/", i), strings.Repeat("x", 1000)))
	}
	stats := topics.From(app).Stats()
	require.LessOrEqual(t, stats.HistoryDiskBytes, config.HistoryDiskBytes)
	require.Equal(t, stats.Histories, auxCount(t, app, "_topicsMessages"))
	require.Len(t, historyOf(t, app, "a/199"), 1)
	require.Empty(t, historyOf(t, app, "a/0"), "the oldest went")
}

// What is kept of one sender takes a part of the disk, wherever it is sent to. It
// costs nobody else a message.
func TestTheDiskShareOfOneSender(t *testing.T) {
	config := topics.Config{HistoryDiskBytes: 400 << 10}
	app := newApp(t, config)
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "a/{x}", "subscribeRule": "", "publishRule": "", "history": 10})
	_, ann := newUser(t, app, "ann")
	_, bob := newUser(t, app, "bob")
	publish := func(token, topic, text string) reply {
		return s.publish(token, fmt.Sprintf(`{"topic":%q,"data":%q}`, topic, text))
	}
	require.Equal(t, 200, publish(ann, "a/shared", "first").status, "ann has begun it")
	notifyAll(t, app, "a/app", 1, 3)
	for range 8 {
		require.Equal(t, 200, publish(bob, "a/shared", "x").status)
		require.Equal(t, 200, publish(bob, "a/bob", "x").status)
	}
	large, sent := strings.Repeat("x", 2000), 0
	for i := range 300 {
		if r := publish(ann, fmt.Sprint("a/", i%30), large); r.status == 200 {
			sent++
		} else {
			require.Equal(t, "sender_history_exceeded", r.code("topic"), r.body)
		}
	}
	require.InDelta(t, (50<<10)/2514, sent, 5)
	require.Len(t, historyOf(t, app, "a/app"), 3)
	require.Len(t, historyOf(t, app, "a/shared"), 9)
	require.Equal(t, 200, publish(bob, "a/bob", "still").status)
	require.Zero(t, topics.From(app).Stats().HistoriesEvicted)

	// what goes makes room
	require.NoError(t, app.Delete(findRule(t, app, "a/{x}")))
	define(t, app, map[string]any{"pattern": "a/{x}", "subscribeRule": "", "publishRule": "", "history": 1})
	require.Equal(t, 200, publish(ann, "a/new", large).status)
	for range 100 {
		require.Equal(t, 200, publish(ann, "a/new", large).status, "each takes the place of the one before")
	}
}

// What the memory is counted as is what it takes, whatever is sent and however
// it is read.
func TestHistoryTotalBytes(t *testing.T) {
	const limit = 32 << 20
	app := newApp(t, topics.Config{HistoryTotalBytes: limit, HistoryInMemory: true, HistoryMessages: 100_000, HistoryBytes: 64 << 20})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "a/{x}", "subscribeRule": "", "history": 100_000})
	c := s.connect()
	c.mustSubscribe("", key("a/0", map[string]any{"envelope": true}), key("a/1", map[string]any{"envelope": true}))
	go func() { // they are not looked at
		for {
			select {
			case <-c.events:
			case <-c.closed:
				return
			}
		}
	}()

	heap := func() int {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	before := heap()
	large := strings.Repeat("<", 9<<10)
	for i := 0; topics.From(app).Stats().HistoriesEvicted == 0; i++ {
		var data any = large
		if i%2 == 0 {
			data = "<"
		}
		for range 20 {
			require.NoError(t, topics.Notify(app, fmt.Sprint("a/", i%7), data, topics.Event(strings.Repeat("e", 64)), topics.Except(strings.Repeat("x", 40))))
		}
	}
	stats := topics.From(app).Stats()
	require.LessOrEqual(t, stats.HistoryBytes, limit)
	taken := heap() - before
	t.Logf("counted %d, taken %d", stats.HistoryBytes, taken)
	require.Less(t, taken, limit+limit/5)
}

// A busy auxiliary database holds nobody up for longer than once the patience,
// and nothing at all of Notify.
func TestABusyDisk(t *testing.T) {
	config := topics.Config{HistoryTotalBytes: 16 << 10, ResumeOverlap: -1}
	app := newApp(t, config)
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "a/{x}", "subscribeRule": "", "publishRule": "", "history": 10})
	for i := range 30 {
		notifyAll(t, app, fmt.Sprint("a/", i), 1, 3)
		topics.SettleHistory(app)
	}
	letGo := holdAux(t, app)

	start := time.Now()
	for i := range 30 {
		notifyAll(t, app, fmt.Sprint("a/", i), 4, 4)
	}
	require.Less(t, time.Since(start), time.Second, "Notify does not wait")

	start = time.Now()
	c := s.connect()
	var keys []string
	for i := range 30 {
		keys = append(keys, key(fmt.Sprint("a/", i), map[string]any{"resume": fmt.Sprint("r", i)}))
	}
	c.mustSubscribe("", keys...)
	require.Less(t, time.Since(start), 4*time.Second, "one wait for all")
	for range keys {
		require.Equal(t, "ready", c.envelope().Type)
	}

	for i := range 30 {
		start = time.Now()
		r := s.request(http.MethodGet, "/api/topics/history?topic="+url.QueryEscape(fmt.Sprint("a/", i)), "", "")
		require.Equal(t, http.StatusOK, r.status, r.body)
		var page struct{ Messages []enveloped }
		require.NoError(t, json.Unmarshal([]byte(r.body), &page))
		require.Len(t, page.Messages, 4, "in order, the one that is not written too")
		require.Less(t, time.Since(start), time.Second)
	}
	require.Positive(t, topics.From(app).Stats().HistoryBacklog)
	letGo()
	topics.SettleHistory(app)
	require.Zero(t, topics.From(app).Stats().HistoryBacklog)
}

// The end of the app does not wait for a database that is busy for good.
func TestABusyDiskDoesNotHoldTheEnd(t *testing.T) {
	app, _ := newHistoryApp(t, topics.Config{WriteTimeout: 300 * time.Millisecond})
	letGo := holdAux(t, app)
	notifyAll(t, app, "a", 1, 3)
	start := time.Now()
	require.NoError(t, app.OnTerminate().Trigger(&core.TerminateEvent{App: app}))
	require.Less(t, time.Since(start), 3*time.Second)
	letGo()
}

// Two processes on one data directory, as in a deploy: the newer one's messages
// stay, and the older one is told and writes no longer.
func TestANewerProcessTakesOver(t *testing.T) {
	old := newApp(t, topics.Config{})
	keepLogs(old)
	serve(t, old)
	define(t, old, map[string]any{"pattern": "a", "subscribeRule": "", "history": 10})
	notifyAll(t, old, "a", 1, 2)
	topics.SettleHistory(old)

	// both on the same files: a test app would make a copy
	shared := core.NewBaseApp(core.BaseAppConfig{DataDir: old.DataDir(), EncryptionEnv: "pb_test_env"})
	require.NoError(t, shared.Bootstrap())
	t.Cleanup(func() {
		require.NoError(t, shared.OnTerminate().Trigger(&core.TerminateEvent{App: shared}))
		require.NoError(t, shared.ResetBootstrapState())
	})
	require.NoError(t, topics.Register(shared, topics.Config{}))
	topics.OpenDisk(shared)

	require.NoError(t, topics.Notify(shared, "a", "new"))
	topics.SettleHistory(shared)
	before := logged(t, old, "Failed to write the history of topics")
	require.NoError(t, topics.Notify(old, "a", "late"))
	topics.SettleHistory(old)
	require.NoError(t, topics.Notify(old, "a", "later"))
	topics.SettleHistory(old)
	require.Eventually(t, func() bool {
		return logged(t, old, "Failed to write the history of topics") == before+1
	}, patience, 10*time.Millisecond, "told once")

	require.Equal(t, []string{"1", "2", `"new"`}, historyOf(t, shared, "a"))
	require.NoError(t, old.OnTerminate().Trigger(&core.TerminateEvent{App: old}))
	var data []string
	require.NoError(t, shared.AuxDB().NewQuery("SELECT data FROM _topicsMessages ORDER BY position").Column(&data))
	require.Equal(t, []string{"1", "2", `"new"`}, data)
}
