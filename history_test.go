package topics_test

import (
	"encoding/json"
	"errors"
	"fmt"
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

// enveloped is what a subscriber with the envelope option receives.
type enveloped struct {
	Type    string          `json:"type"`
	Topic   string          `json:"topic"`
	ID      string          `json:"id"`
	Event   string          `json:"event"`
	Time    string          `json:"time"`
	Sender  *topics.Sender  `json:"sender"`
	Data    json.RawMessage `json:"data"`
	Code    string          `json:"code"`
	Resumed *bool           `json:"resumed"`
	From    string          `json:"from"`
	To      string          `json:"to"`
	Count   *int            `json:"count"`
	Reason  string          `json:"reason"`
}

func (c *stream) envelope() enveloped {
	c.s.t.Helper()
	return openEnvelope(c.s.t, c.next())
}

func openEnvelope(t testing.TB, e event) enveloped {
	t.Helper()
	var v enveloped
	require.NoError(t, json.Unmarshal([]byte(e.data), &v), e.data)
	require.NotEmpty(t, v.Type, e.data)
	return v
}

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

func TestReplay(t *testing.T) {
	app, s := newHistoryApp(t, topics.Config{})
	notifyAll(t, app, "a", 1, 5)

	c := s.connect()
	c.mustSubscribe("", key("a", map[string]any{"envelope": true, "replay": 3}))
	require.Equal(t, "ready", c.envelope().Type)
	notifyAll(t, app, "a", 6, 6)
	require.Equal(t, "3 4 5 6", story(t, c.drain()))

	// the same key again changes nothing; another asks anew
	c.mustSubscribe("", key("a", map[string]any{"envelope": true, "replay": 3}), "b")
	require.Equal(t, "topic_unknown", c.next().notice(t).Code)
	c.mustSubscribe("", key("a", map[string]any{"envelope": true, "replay": "100"}))
	require.Equal(t, "ready 1 2 3 4 5 6", story(t, c.drain()))

	// without the envelope it is the data alone
	plain := s.connect()
	plain.mustSubscribe("", key("a", map[string]any{"replay": 2}))
	require.Equal(t, "5", plain.next().data)
	require.Equal(t, "6", plain.next().data)
	plain.quiet()

	// no more than is kept
	notifyAll(t, app, "a", 7, 20)
	last := s.connect()
	last.mustSubscribe("", key("a", map[string]any{"envelope": true, "replay": 1000}))
	require.Equal(t, "ready 11 12 13 14 15 16 17 18 19 20", story(t, last.drain()))
}

func TestEnvelope(t *testing.T) {
	app, s := newHistoryApp(t, topics.Config{})
	define(t, app, map[string]any{"pattern": "b", "subscribeRule": ""})
	user, token := newUser(t, app, "ann")

	c := s.connect()
	c.mustSubscribe("", key("a", map[string]any{"envelope": true}), key("b", map[string]any{"envelope": true}), key("c", map[string]any{"envelope": true}))
	first, second, denied := c.envelope(), c.envelope(), c.envelope()
	require.ElementsMatch(t, []string{"a", "b"}, []string{first.Topic, second.Topic})
	require.Equal(t, "ready", first.Type)
	require.Equal(t, "ready", second.Type)
	require.Equal(t, "denied", denied.Type)
	require.Equal(t, "topic_unknown", denied.Code)

	r := s.publish(token, `{"topic":"a","data":{"x":1},"event":"typed"}`)
	require.Equal(t, http.StatusOK, r.status, r.body)
	var answer struct{ ID string }
	require.NoError(t, json.Unmarshal([]byte(r.body), &answer))
	e := c.envelope()
	require.Equal(t, enveloped{
		Type: "message", Topic: "a", ID: answer.ID, Event: "typed", Time: e.Time,
		Sender: &topics.Sender{ID: user.Id, Collection: "users"}, Data: json.RawMessage(`{"x":1}`),
	}, e)
	sent, err := time.Parse("2006-01-02 15:04:05.000Z", e.Time)
	require.NoError(t, err)
	require.WithinDuration(t, time.Now(), sent, patience)

	require.NoError(t, topics.Notify(app, "b", nil, topics.Event("x")))
	e = c.envelope()
	require.Empty(t, e.ID, "b keeps no history")
	require.Equal(t, "x", e.Event)
	require.Equal(t, "null", string(e.Data))
	require.Nil(t, e.Sender)
}

func TestInvalidOptions(t *testing.T) {
	_, s := newHistoryApp(t, topics.Config{})
	for _, query := range []map[string]any{
		{"replay": -1}, {"replay": "x"}, {"replay": 1.5}, {"envelope": "yes"}, {"resume": ""}, {"resume": strings.Repeat("x", 129)},
	} {
		c := s.connect()
		c.mustSubscribe("", key("a", query))
		require.Contains(t, c.next().data, "topic_options_invalid", query)
	}
}

func TestResume(t *testing.T) {
	app, s := newHistoryApp(t, topics.Config{ResumeOverlap: -1})
	_, ann := newUser(t, app, "ann")
	_, bob := newUser(t, app, "bob")
	k := key("a", map[string]any{"resume": "r1"})

	c := s.connect()
	c.mustSubscribe(ann, k)
	ready := c.envelope()
	require.Equal(t, "ready", ready.Type)
	require.False(t, *ready.Resumed)
	notifyAll(t, app, "a", 1, 3)
	require.Equal(t, "1 2 3", story(t, c.drain()))
	c.disconnect()
	waitForClients(t, app, 0)
	notifyAll(t, app, "a", 4, 6)

	// the id of somebody else is worth nothing
	other := s.connect()
	other.mustSubscribe(bob, k)
	require.Equal(t, "ready", story(t, other.drain()))

	c = s.connect()
	c.mustSubscribe(ann, k)
	ready = c.envelope()
	require.True(t, *ready.Resumed)
	require.Equal(t, "4 5 6 recovered", story(t, c.drain()))
	notifyAll(t, app, "a", 7, 7)
	require.Equal(t, "7", story(t, c.drain()))

	// with nothing missed
	c.disconnect()
	waitForClients(t, app, 1)
	c = s.connect()
	c.mustSubscribe(ann, k)
	require.Equal(t, "ready recovered", story(t, c.drain()))

	// too much missed
	c.disconnect()
	waitForClients(t, app, 1)
	notifyAll(t, app, "a", 8, 20)
	c = s.connect()
	c.mustSubscribe(ann, k)
	events := c.drain()
	require.Equal(t, "ready gap(expired) 11 12 13 14 15 16 17 18 19 20", story(t, events))
	gap := openEnvelope(t, events[1])
	require.Equal(t, 3, *gap.Count)
	require.Equal(t, "topic_gap", gap.Code)
	require.True(t, strings.HasSuffix(gap.From, ":7") && strings.HasSuffix(gap.To, ":11"), "%+v", gap)
}

func waitForClients(t testing.TB, app core.App, count int) {
	t.Helper()
	require.Eventually(t, func() bool { return app.SubscriptionsBroker().TotalClients() == count }, patience, time.Millisecond)
}

// What was sent right before a connection ended is sent again, and has the
// same id.
func TestResumeRepeatsWhatIsNotCertain(t *testing.T) {
	app, s := newHistoryApp(t, topics.Config{})
	k := key("a", map[string]any{"resume": "r1"})

	c := s.connect()
	c.mustSubscribe("", k)
	require.Equal(t, "ready", c.envelope().Type)
	notifyAll(t, app, "a", 1, 3)
	before := c.drain()

	// the old connection is still there, as if its network were gone
	again := s.connect()
	again.mustSubscribe("", k)
	after := again.drain()
	require.Equal(t, "ready 1 2 3 recovered", story(t, after))
	for i := range before {
		require.Equal(t, before[i].data, after[i+1].data)
	}

	// and does not move the position any more
	notifyAll(t, app, "a", 4, 4)
	require.Equal(t, "4", story(t, c.drain()))
	require.Equal(t, "4", story(t, again.drain()))
}

func TestResumeAsksTheRule(t *testing.T) {
	app, s := newHistoryApp(t, topics.Config{ResumeOverlap: -1})
	newCollection(t, app, "members", &core.TextField{Name: "user"})
	define(t, app, map[string]any{"pattern": "room", "subscribeRule": "@request.auth.id != '' && @collection.members.user ?= @request.auth.id", "history": 10})
	ann, token := newUser(t, app, "ann")
	member := newRecord(t, app, "members", map[string]any{"user": ann.Id})
	k := key("room", map[string]any{"resume": "r"})

	c := s.connect()
	c.mustSubscribe(token, k)
	require.Equal(t, "ready", c.envelope().Type)
	c.disconnect()
	waitForClients(t, app, 0)
	notifyAll(t, app, "room", 1, 1)
	require.NoError(t, app.Delete(member))

	c = s.connect()
	c.mustSubscribe(token, k)
	require.Equal(t, "denied", story(t, c.drain()))

	newRecord(t, app, "members", map[string]any{"user": ann.Id})
	c.mustSubscribe(token)
	c.mustSubscribe(token, k)
	require.Equal(t, "ready 1 recovered", story(t, c.drain()))
}

// A replay and what is published meanwhile make one sequence.
func TestReplayAndLiveJoin(t *testing.T) {
	app := newApp(t, topics.Config{HistoryMessages: 100_000, HistoryBytes: 64 << 20})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "a", "subscribeRule": "", "history": 100_000})

	const messages = 3000
	var publisher sync.WaitGroup
	publisher.Go(func() { notifyAll(t, app, "a", 1, messages) })

	var subscribers sync.WaitGroup
	for range 8 {
		subscribers.Go(func() {
			c := s.connect()
			c.mustSubscribe("", key("a", map[string]any{"replay": 100_000}))
			for want := 1; want <= messages; want++ {
				require.Equal(t, fmt.Sprint(want), c.next().data)
			}
		})
	}
	subscribers.Wait()
	publisher.Wait()
}

// A client that reads slowly is not closed in a topic with history: it goes on
// from there.
func TestSlowConsumersGoOnFromTheHistory(t *testing.T) {
	app := newApp(t, topics.Config{QueueMessages: 8, HistoryMessages: 10_000, HistoryBytes: 64 << 20})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "a", "subscribeRule": "", "history": 10_000})
	define(t, app, map[string]any{"pattern": "short", "subscribeRule": "", "history": 5})

	c := s.connect()
	c.mustSubscribe("", "a", key("short", map[string]any{"envelope": true}))
	require.Equal(t, "ready", c.envelope().Type)
	pause := make(chan struct{})
	app.OnRealtimeMessageSend().BindFunc(func(e *core.RealtimeMessageEvent) error {
		<-pause
		return e.Next()
	})

	notifyAll(t, app, "a", 1, 500)
	notifyAll(t, app, "short", 1, 500)
	close(pause)
	var a, short []event
	for len(a) < 500 || len(short) == 0 || !strings.Contains(short[len(short)-1].data, `"data":500}`) {
		if e := c.next(); e.name == "a" {
			a = append(a, e)
		} else {
			short = append(short, e)
		}
	}
	for i, e := range a {
		require.Equal(t, fmt.Sprint(i+1), e.data)
	}
	require.Contains(t, story(t, short), "gap(slow) 496 497 498 499 500")
	require.Equal(t, 1, app.SubscriptionsBroker().TotalClients())
}

// restart starts another app on a copy of the data.
func restart(t testing.TB, app *tests.TestApp, config topics.Config, clean bool) (*tests.TestApp, *server) {
	t.Helper()
	if clean {
		require.NoError(t, app.OnTerminate().Trigger(&core.TerminateEvent{App: app}))
	}
	next, err := tests.NewTestApp(app.DataDir())
	require.NoError(t, err)
	t.Cleanup(next.Cleanup)
	require.NoError(t, topics.Register(next, config))
	return next, serve(t, next)
}

func TestACleanRestartKeepsHistories(t *testing.T) {
	app, s := newHistoryApp(t, topics.Config{ResumeOverlap: -1})
	_, token := newUser(t, app, "ann")
	k := key("a", map[string]any{"resume": "r"})
	c := s.connect()
	c.mustSubscribe(token, k)
	require.Equal(t, "ready", c.envelope().Type)
	require.Equal(t, http.StatusOK, s.publish(token, `{"topic":"a","data":1,"event":"e"}`).status)
	notifyAll(t, app, "a", 2, 3)
	before := c.drain()
	require.Len(t, before, 3)
	c.disconnect()
	waitForClients(t, app, 0)
	notifyAll(t, app, "a", 4, 5)

	app, s = restart(t, app, topics.Config{ResumeOverlap: -1}, true)
	notifyAll(t, app, "a", 6, 6)
	c = s.connect()
	c.mustSubscribe(token, k)
	require.Equal(t, "ready 4 5 6 recovered", story(t, c.drain()))

	all := s.connect()
	all.mustSubscribe("", key("a", map[string]any{"envelope": true, "replay": 10}))
	events := all.drain()
	require.Equal(t, "ready 1 2 3 4 5 6", story(t, events))
	for i := range before {
		require.Equal(t, before[i].data, events[i+1].data, "byte by byte, sender and time included")
	}
}

func TestAnUncleanStopIsTold(t *testing.T) {
	app, s := newHistoryApp(t, topics.Config{ResumeOverlap: -1})
	k := key("a", map[string]any{"resume": "r"})
	c := s.connect()
	c.mustSubscribe("", k)
	require.Equal(t, "ready", c.envelope().Type)
	notifyAll(t, app, "a", 1, 3)
	require.Equal(t, "1 2 3", story(t, c.drain()))
	topics.SettleHistory(app)

	// the copy was never stopped
	app, s = restart(t, app, topics.Config{ResumeOverlap: -1}, false)
	notifyAll(t, app, "a", 4, 4)
	c = s.connect()
	c.mustSubscribe("", k)
	require.Equal(t, "ready 1 2 3 gap(epoch) 4", story(t, c.drain()))
	c.disconnect()
	waitForClients(t, app, 0)

	c = s.connect()
	c.mustSubscribe("", k)
	require.Equal(t, "ready recovered", story(t, c.drain()), "told once")
}

func TestInMemoryHistoriesEndWithTheProcess(t *testing.T) {
	config := topics.Config{HistoryInMemory: true}
	app, s := newHistoryApp(t, config)
	notifyAll(t, app, "a", 1, 3)
	c := s.connect()
	c.mustSubscribe("", key("a", map[string]any{"replay": 1}))
	require.Equal(t, "3", c.next().data)

	_, s = restart(t, app, config, true)
	c = s.connect()
	c.mustSubscribe("", key("a", map[string]any{"envelope": true, "replay": 10}))
	require.Equal(t, "ready", story(t, c.drain()))
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

// Messages that fill the queue one by one all come.
func TestReplayOfLargeMessages(t *testing.T) {
	app := newApp(t, topics.Config{QueueBytes: 64 << 10, MaxPayload: -1})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "a", "subscribeRule": "", "history": 10})
	for range 5 {
		require.NoError(t, topics.Notify(app, "a", strings.Repeat("x", 32_300)))
	}

	c := s.connect()
	c.mustSubscribe("", key("a", map[string]any{"envelope": true, "replay": 10}))
	require.Equal(t, "ready", c.envelope().Type)
	for i := 1; i <= 5; i++ {
		require.True(t, strings.HasSuffix(c.envelope().ID, fmt.Sprint(":", i)))
	}
}
