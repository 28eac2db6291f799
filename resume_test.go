package topics_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

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

// A sign-in on an open connection takes the guest's position along.
func TestASignInKeepsThePosition(t *testing.T) {
	app, s := newHistoryApp(t, topics.Config{ResumeOverlap: -1})
	_, ann := newUser(t, app, "ann")
	k := key("a", map[string]any{"resume": "r1"})
	c := s.connect()
	c.mustSubscribe("", k)
	require.Equal(t, "ready", story(t, c.drain()))
	notifyAll(t, app, "a", 1, 2)
	require.Equal(t, "1 2", story(t, c.drain()))
	c.mustSubscribe(ann, k)
	notifyAll(t, app, "a", 3, 3)
	require.Equal(t, "3", story(t, c.drain()))
	c.disconnect()
	waitForClients(t, app, 0)
	notifyAll(t, app, "a", 4, 5)

	c = s.connect()
	c.mustSubscribe(ann, k)
	ready := c.envelope()
	require.True(t, *ready.Resumed)
	require.Equal(t, "4 5 recovered", story(t, c.drain()))
	require.Equal(t, 1, topics.From(app).Stats().Positions, "the guest's is gone")
}
