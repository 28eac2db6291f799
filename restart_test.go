package topics_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"testing"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tests"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

// restart starts another app on a copy of the data.
func restart(t testing.TB, app *tests.TestApp, config topics.Config, clean bool) (*tests.TestApp, *server) {
	t.Helper()
	if clean {
		require.NoError(t, app.OnTerminate().Trigger(&core.TerminateEvent{App: app}))
	}
	next := newAppIn(t, app.DataDir(), config)
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

// Two copies of a directory part ways at their start: neither takes an id of the
// other for one of its own. A clock that was set back changes nothing of that.
func TestCopiesOfADirectoryPartWays(t *testing.T) {
	app, _ := newHistoryApp(t, topics.Config{})
	notifyAll(t, app, "a", 1, 3)
	require.NoError(t, app.OnTerminate().Trigger(&core.TerminateEvent{App: app}))

	first := newAppIn(t, app.DataDir(), topics.Config{})
	serve(t, first)
	notifyAll(t, first, "a", 4, 5)
	second := newAppIn(t, app.DataDir(), topics.Config{}) // the backup is put back
	s := serve(t, second)
	for i := range 2 {
		require.NoError(t, topics.Notify(second, "a", 14+i))
	}

	of := func(app core.App) (ids []string) {
		page, err := topics.History(app, "a", topics.HistoryOptions{})
		require.NoError(t, err)
		return page.IDs
	}
	ids, others := of(first), of(second)
	require.Equal(t, ids[:3], others[:3], "they have these in common")
	require.NotContains(t, others, ids[3])
	require.NotContains(t, others, ids[4])

	page, err := topics.History(second, "a", topics.HistoryOptions{Since: ids[4]})
	require.NoError(t, err)
	require.False(t, page.Recovered)
	require.Len(t, page.Messages, 5)
	page, err = topics.History(second, "a", topics.HistoryOptions{Since: ids[2]})
	require.NoError(t, err)
	require.True(t, page.Recovered, "a clean restart costs nothing")
	require.Len(t, page.Messages, 2)

	claim := func(id string) string {
		c := s.connect()
		defer c.disconnect()
		c.claim("", map[string]string{key("a", map[string]any{"envelope": true}): id})
		return story(t, c.drain())
	}
	require.Equal(t, "ready gap(epoch) 1 2 3 14 15", claim(ids[4]))
	require.Equal(t, "ready 14 15 recovered", claim(ids[2]))
	require.Equal(t, "ready 3 14 15 recovered", claim(ids[1]))
	require.Equal(t, "ready recovered", claim(others[4]))
	require.Equal(t, "ready", claim(""))
	for _, id := range []string{"x", ":", "x:y", "0:1", "zzzzzzzzzzzz:3", others[4] + "0"} {
		require.Equal(t, "ready gap(epoch) 1 2 3 14 15", claim(id), id)
	}
}

// claim subscribes to the keys, with the ids that the client says it has.
func (c *stream) claim(token string, positions map[string]string) {
	c.s.t.Helper()
	var keys []string
	for key := range positions {
		keys = append(keys, key)
	}
	c.claimMore(token, positions, "", keys...)
}

func (c *stream) claimMore(token string, positions map[string]string, previous string, keys ...string) {
	c.s.t.Helper()
	body, err := json.Marshal(map[string]any{"clientId": c.id, "subscriptions": keys, "positions": positions, "previousClientId": previous})
	require.NoError(c.s.t, err)
	r := c.s.request(http.MethodPost, "/api/realtime", token, string(body))
	require.Equal(c.s.t, http.StatusNoContent, r.status, r.body)
}

// A position counts for a key that its request starts, and only for that.
func TestPositionsOfTheClient(t *testing.T) {
	app, s := newHistoryApp(t, topics.Config{})
	define(t, app, map[string]any{"pattern": "b", "subscribeRule": "", "history": 10})
	define(t, app, map[string]any{"pattern": "closed", "history": 10})
	k, other := key("a", map[string]any{"envelope": true}), key("b", map[string]any{"envelope": true})

	c := s.connect()
	c.claim("", map[string]string{k: ""})
	ready := c.envelope()
	require.Equal(t, "ready", ready.Type)
	require.False(t, *ready.Resumed)
	require.NotEmpty(t, ready.ID, "there is a position before the first message")
	notifyAll(t, app, "a", 1, 3)
	events := c.drain()
	require.Equal(t, "1 2 3", story(t, events))
	id := openEnvelope(t, events[0]).ID

	// the SDK sends all keys with every request: the position of one that goes on is ignored
	c.claimMore("", map[string]string{k: id, other: ""}, "", k, other)
	require.Equal(t, "ready", story(t, c.drain()))

	again := s.connect()
	again.claimMore("", map[string]string{k: id, key("closed", nil): id}, c.id, k)
	events = again.drain()
	require.Equal(t, "ready 2 3 recovered", story(t, events))
	require.True(t, *openEnvelope(t, events[0]).Resumed)

	// from before the first message on
	first := s.connect()
	first.claim("", map[string]string{k: ready.ID})
	require.Equal(t, "ready 1 2 3 recovered", story(t, first.drain()))

	// it beats replay; an empty one is for those who have nothing
	r := key("a", map[string]any{"envelope": true, "replay": 2})
	with := s.connect()
	with.claim("", map[string]string{r: id})
	require.Equal(t, "ready 2 3 recovered", story(t, with.drain()))
	without := s.connect()
	without.claim("", map[string]string{r: ""})
	require.Equal(t, "ready 2 3", story(t, without.drain()))

	// and it beats what the server knows, and sets it
	kept := key("a", map[string]any{"resume": "r"})
	c = s.connect()
	c.claim("", map[string]string{kept: ""})
	require.Equal(t, "ready", story(t, c.drain()))
	c.disconnect()
	c = s.connect()
	c.claim("", map[string]string{kept: id})
	require.Equal(t, "ready 2 3 recovered", story(t, c.drain()))

	// of a form that is none
	for _, positions := range []string{`[]`, `1`, `{"a":1}`, `null`} {
		c := s.connect()
		body := fmt.Sprintf(`{"clientId":%q,"subscriptions":[%q],"positions":%s,"previousClientId":[1]}`, c.id, "a", positions)
		require.Equal(t, http.StatusNoContent, s.request(http.MethodPost, "/api/realtime", "", body).status)
		c.quiet()
	}
}

// A client does not get its own messages back by a replay after a reconnect.
func TestThePreviousConnectionsMessages(t *testing.T) {
	app, s := newHistoryApp(t, topics.Config{})
	k := key("a", map[string]any{"envelope": true})
	c := s.connect()
	c.claim("", map[string]string{k: ""})
	from := c.envelope().ID
	other := s.connect()
	other.mustSubscribe("", k)
	require.Equal(t, "ready", story(t, other.drain()))
	require.NoError(t, topics.Notify(app, "a", 1, topics.Except(c.id)))
	c.disconnect()

	again := s.connect()
	again.claimMore("", map[string]string{k: from}, c.id, k)
	require.NoError(t, topics.Notify(app, "a", 2))
	require.NoError(t, topics.Notify(app, "a", 3, topics.Except(c.id)))
	require.Equal(t, "ready recovered 2", story(t, again.drain()))
	third := s.connect()
	third.claimMore("", map[string]string{k: from}, again.id, k)
	require.Equal(t, "ready 1 2 3 recovered", story(t, third.drain()), "the claim hides its own only")
	require.Equal(t, "1 2 3", story(t, other.drain()))
}
