package topics_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/logger"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

// keepLogs makes a test app keep its log.
func keepLogs(app core.App) { app.Settings().Logs.MaxDays = 1 }

// logLines returns the lines of the app's log whose message has the text.
func logLines(t testing.TB, app core.App, text string) (found []*core.Log) {
	t.Helper()

	// the log is written in the background, in order: a line tells when it is
	// complete
	marker := fmt.Sprint("marker ", time.Now().UnixNano())
	app.Logger().Error(marker)
	require.NoError(t, app.Logger().Handler().(*logger.BatchHandler).WriteAll(context.Background()))
	require.Eventually(t, func() bool {
		var all []*core.Log
		require.NoError(t, app.LogQuery().OrderBy("rowid").All(&all))
		found = nil
		complete := false
		for _, line := range all {
			complete = complete || line.Message == marker
			if strings.Contains(line.Message, text) {
				found = append(found, line)
			}
		}
		return complete
	}, patience, 10*time.Millisecond)
	return found
}

const (
	refused = "Refused to let a client"
	leftOut = "Left out log lines"
)

// Whatever clients provoke, the log has no more lines of it than LogLines; a
// rule that cannot be evaluated is among them, once.
func TestAFloodOfRefusalsLeavesTheLogReadable(t *testing.T) {
	app := newApp(t, topics.Config{LogLines: 20, QueueMessages: 1 << 20, QueueBytes: 1 << 30})
	s := serve(t, app)
	keepLogs(app)
	newCollection(t, app, "rooms")
	define(t, app, map[string]any{"pattern": "broken/{id}", "subscribeRule": "@collection.rooms.id ?= @topic.id"})
	remove(t, app, "rooms")

	c := s.connect()
	for request := range 20 {
		keys := make([]string, 1000)
		for i := range keys {
			keys[i] = fmt.Sprintf("secret/%d/%d", request, i)
		}
		c.mustSubscribe("", keys...)
		c.drain()
		if request == 10 {
			c.mustSubscribe("", "broken/1")
		}
	}
	for i := range 30 {
		s.publish("", fmt.Sprintf(`{"topic":"other/%d","data":1}`, i))
		s.presence("", fmt.Sprint("more/", i))
		s.request("GET", fmt.Sprint("/api/topics/history?topic=", strings.Repeat("x", 5000), i), "", "")
		c.mustSubscribe("", fmt.Sprint("broken/", i))
	}

	lines := logLines(t, app, refused)
	require.Len(t, lines, 16, "15 refusals and the error")
	errors := 0
	for _, line := range lines {
		if line.Level == int(slog.LevelError) {
			errors++
			require.Equal(t, "topic_rule_error", line.Data["code"])
		}
	}
	require.Equal(t, 1, errors)
	require.Greater(t, topics.From(app).Stats().LogLinesOmitted, uint64(5000))

	require.Empty(t, logLines(t, app, leftOut), "the minute is not over")
	require.NoError(t, app.OnTerminate().Trigger(&core.TerminateEvent{App: app}))
	last := logLines(t, app, leftOut)
	require.Len(t, last, 1)
	require.Greater(t, last[0].Data["lines"], 5000.0)
}

// Connections that end, and handlers of the app that fail, are lines that
// clients provoke too.
func TestAFloodOfFailingHandlersLeavesTheLogReadable(t *testing.T) {
	app, s := newPresenceApp(t, topics.Config{LogLines: 8, PresenceGrace: -1})
	keepLogs(app)
	failed := make(chan struct{}, 100)
	topics.From(app).OnJoin().BindFunc(func(e *topics.MemberEvent) error {
		failed <- struct{}{}
		return fmt.Errorf("failed for %s", e.Topic)
	})
	c := s.connect()
	for i := range 30 {
		c.mustSubscribe("", fmt.Sprint("room/", i))
		<-failed
	}
	require.Eventually(t, func() bool { return topics.From(app).Stats().LogLinesOmitted == 22 }, patience, time.Millisecond)
	require.Len(t, logLines(t, app, "A handler of a presence hook has failed"), 8)
}

// What the app's log does not want is not left out of it.
func TestRefusalsBelowTheLogsLevelCountNothing(t *testing.T) {
	app := newApp(t, topics.Config{LogLines: 8})
	s := serve(t, app)
	keepLogs(app)
	app.Logger().Handler().(*logger.BatchHandler).SetLevel(slog.LevelWarn)
	for i := range 20 {
		s.publish("", fmt.Sprintf(`{"topic":"other/%d","data":1}`, i))
	}
	require.Zero(t, topics.From(app).Stats().LogLinesOmitted)
	require.Empty(t, logLines(t, app, refused))
}
