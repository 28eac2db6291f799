package topics_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tests"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

// story is what was received: numbers for messages, else types with reasons.
func story(t testing.TB, events []event) string {
	t.Helper()
	var parts []string
	for _, e := range events {
		v := openEnvelope(t, e)
		switch {
		case v.Type == "message":
			parts = append(parts, string(v.Data))
		case v.Reason != "":
			parts = append(parts, v.Type+"("+v.Reason+")")
		default:
			parts = append(parts, v.Type)
		}
	}
	return strings.Join(parts, " ")
}

func notifyAll(t testing.TB, app core.App, topic string, from, to int) {
	t.Helper()
	for i := from; i <= to; i++ {
		require.NoError(t, topics.Notify(app, topic, i))
	}
}

func newHistoryApp(t testing.TB, config topics.Config) (*tests.TestApp, *server) {
	t.Helper()
	app := newApp(t, config)
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "a", "subscribeRule": "", "publishRule": "", "history": 10})
	return app, s
}

func TestHistoriesAreBounded(t *testing.T) {
	app := newApp(t, topics.Config{MaxTopics: 2, HistoryMessages: 3, HistoryBytes: 2000, ResumeOverlap: -1, MaxPositions: 2})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "a/{x}", "subscribeRule": "", "history": 100})
	define(t, app, map[string]any{"pattern": "old", "subscribeRule": "", "history": 100, "historyTTL": 1})

	// in messages and in bytes
	notifyAll(t, app, "a/1", 1, 5)
	page, err := topics.History(app, "a/1", topics.HistoryOptions{})
	require.NoError(t, err)
	require.Len(t, page.Messages, 3)
	for range 3 {
		require.NoError(t, topics.Notify(app, "a/1", strings.Repeat("x", 900)))
	}
	page, err = topics.History(app, "a/1", topics.HistoryOptions{})
	require.NoError(t, err)
	require.Len(t, page.Messages, 1)

	// in topics: the one that was not used for the longest time goes
	c := s.connect()
	c.mustSubscribe("", key("a/1", map[string]any{"resume": "r"}))
	require.Equal(t, "ready", c.envelope().Type)
	c.disconnect()
	waitForClients(t, app, 0)
	notifyAll(t, app, "a/2", 1, 1)
	notifyAll(t, app, "a/3", 1, 1)
	c = s.connect()
	c.mustSubscribe("", key("a/1", map[string]any{"resume": "r"}))
	require.Equal(t, "ready gap(evicted)", story(t, c.drain()))

	// in age
	notifyAll(t, app, "old", 1, 1)
	require.Eventually(t, func() bool {
		page, err := topics.History(app, "old", topics.HistoryOptions{})
		require.NoError(t, err)
		return len(page.Messages) == 0 && page.Last != ""
	}, patience, 10*time.Millisecond)
}

func TestHistoryEndpoint(t *testing.T) {
	app, s := newHistoryApp(t, topics.Config{})
	define(t, app, map[string]any{"pattern": "closed", "history": 10})
	define(t, app, map[string]any{"pattern": "none", "subscribeRule": ""})
	notifyAll(t, app, "a", 1, 14)

	get := func(query string) (ids []string, data string, recovered bool) {
		r := s.request(http.MethodGet, "/api/topics/history?"+query, "", "")
		require.Equal(t, http.StatusOK, r.status, r.body)
		var page struct {
			Topic     string
			Messages  []enveloped
			Recovered bool
			Last      string
		}
		require.NoError(t, json.Unmarshal([]byte(r.body), &page))
		require.Equal(t, "a", page.Topic)
		require.True(t, strings.HasSuffix(page.Last, ":14"))
		var parts []string
		for _, m := range page.Messages {
			ids = append(ids, m.ID)
			parts = append(parts, string(m.Data))
		}
		return ids, strings.Join(parts, " "), page.Recovered
	}

	ids, data, recovered := get("topic=a&limit=3")
	require.Equal(t, "12 13 14", data)
	require.True(t, recovered)

	// backward
	older, data, recovered := get("topic=a&limit=4&before=" + url.QueryEscape(ids[0]))
	require.Equal(t, "8 9 10 11", data)
	require.True(t, recovered)
	oldest, data, _ := get("topic=a&before=" + url.QueryEscape(older[0]))
	require.Equal(t, "5 6 7", data)
	_, data, recovered = get("topic=a&before=" + url.QueryEscape(oldest[0]))
	require.Empty(t, data)
	require.True(t, recovered, "nothing is missing between: it is the beginning of what is kept")

	// forward
	_, data, recovered = get("topic=a&limit=2&since=" + url.QueryEscape(oldest[0]))
	require.Equal(t, "6 7", data)
	require.True(t, recovered)
	_, data, recovered = get("topic=a&since=" + url.QueryEscape(ids[2]))
	require.Empty(t, data)
	require.True(t, recovered)

	// what is not there any more, or never was
	epoch, _, _ := strings.Cut(ids[0], ":")
	for _, since := range []string{epoch + ":2", "other:6", epoch + ":15"} {
		_, data, recovered = get("topic=a&since=" + url.QueryEscape(since))
		require.Equal(t, "5 6 7 8 9 10 11 12 13 14", data, since)
		require.False(t, recovered, since)
	}

	for query, code := range map[string]string{
		"":                             "topic_required",
		"topic=closed":                 "topic_denied",
		"topic=unknown":                "topic_unknown",
		"topic=none":                   "topic_without_history",
		"topic=users":                  "topic_reserved",
		"topic=a&since=x":              "since_invalid",
		"topic=a&since=x:1&before=x:2": "since_invalid",
		"topic=a&limit=0":              "limit_invalid",
		"topic=a&limit=x":              "limit_invalid",
		"topic=a&limit=501":            "limit_invalid",
	} {
		r := s.request(http.MethodGet, "/api/topics/history?"+query, "", "")
		require.GreaterOrEqual(t, r.status, 400, query)
		require.Contains(t, r.body, `"`+code+`"`, query)
	}

	_, err := topics.History(app, "none", topics.HistoryOptions{})
	require.ErrorIs(t, err, topics.ErrNoHistory)
	_, err = topics.History(app, "a", topics.HistoryOptions{Since: "x"})
	require.ErrorIs(t, err, topics.ErrInvalidPosition)
	_, err = topics.History(app, "a//b", topics.HistoryOptions{})
	require.ErrorIs(t, err, topics.ErrMalformedTopic)
}

func TestIdempotencyKey(t *testing.T) {
	app, s := newHistoryApp(t, topics.Config{})
	_, ann := newUser(t, app, "ann")
	_, bob := newUser(t, app, "bob")
	c := s.connect()
	c.mustSubscribe("", "a")

	// many at once
	var (
		group sync.WaitGroup
		mu    sync.Mutex
		ids   = map[string]int{}
	)
	for range 20 {
		group.Go(func() {
			r := s.publish(ann, `{"topic":"a","data":1,"idempotencyKey":"k"}`)
			mu.Lock()
			ids[r.body]++
			mu.Unlock()
		})
	}
	group.Wait()
	require.Len(t, ids, 1, "all have one answer")
	require.Len(t, c.drain(), 1)

	// the key is the sender's and the topic's own
	for token, body := range map[string]string{
		bob: `{"topic":"a","data":2,"idempotencyKey":"k"}`,
		ann: `{"topic":"a","data":2,"idempotencyKey":"k2"}`,
	} {
		require.Equal(t, http.StatusOK, s.publish(token, body).status)
		require.Len(t, c.drain(), 1)
	}

	for _, invalid := range []string{`""`, `1`, `"` + strings.Repeat("x", 129) + `"`} {
		r := s.publish(ann, `{"topic":"a","data":1,"idempotencyKey":`+invalid+`}`)
		require.Equal(t, "idempotency_key_invalid", r.code("idempotencyKey"), r.body)
	}
	r := s.publish(ann, `{"topic":"a","data":1,"event":"`+strings.Repeat("x", 65)+`"}`)
	require.Equal(t, "event_invalid", r.code("event"), r.body)
	require.ErrorIs(t, topics.Notify(app, "a", 1, topics.Event(strings.Repeat("x", 65))), topics.ErrInvalidEvent)
}

// The order of offsets is the order of commits, also when the callbacks of the
// transactions run in another order.
func TestOffsetsFollowTheCommits(t *testing.T) {
	app, _ := newHistoryApp(t, topics.Config{})
	users, err := app.FindCollectionByNameOrId("users")
	require.NoError(t, err)

	first, second := make(chan struct{}), make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		require.NoError(t, app.RunInTransaction(func(tx core.App) error {
			// its other callback holds the message up until the second one is through
			tx.TxInfo().OnComplete(func(error) error {
				close(first)
				<-second
				return nil
			})
			return topics.Notify(tx, "a", 1)
		}))
	})
	<-first
	require.NoError(t, app.RunInTransaction(func(tx core.App) error {
		if err := topics.Notify(tx, "a", 2); err != nil {
			return err
		}
		return tx.Save(users)
	}))
	rollback := errors.New("no")
	require.ErrorIs(t, app.RunInTransaction(func(tx core.App) error {
		return errors.Join(topics.Notify(tx, "a", 3), rollback)
	}), rollback)
	close(second)
	group.Wait()

	page, err := topics.History(app, "a", topics.HistoryOptions{})
	require.NoError(t, err)
	require.Len(t, page.Messages, 2)
	require.Equal(t, "1", string(page.Messages[0].Data))
	require.Equal(t, "2", string(page.Messages[1].Data))
}

// What is sent before the app serves is not part of the histories, and leaves
// them as they are.
func TestAnEarlyNotifyLeavesHistoriesAlone(t *testing.T) {
	app, _ := newHistoryApp(t, topics.Config{})
	notifyAll(t, app, "a", 1, 3)
	require.NoError(t, app.OnTerminate().Trigger(&core.TerminateEvent{App: app}))

	next, err := tests.NewTestApp(app.DataDir())
	require.NoError(t, err)
	t.Cleanup(next.Cleanup)
	require.NoError(t, topics.Register(next, topics.Config{}))
	require.NoError(t, topics.Notify(next, "a", "early"))
	serve(t, next)
	notifyAll(t, next, "a", 4, 4)

	page, err := topics.History(next, "a", topics.HistoryOptions{})
	require.NoError(t, err)
	require.Len(t, page.Messages, 4)
	require.Equal(t, "1", string(page.Messages[0].Data))
}
