package topics_test

import (
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
