package topics_test

import (
	"context"
	databasesql "database/sql"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/tests"
	"github.com/pocketbase/pocketbase/tools/subscriptions"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

// panickingClient is a client of the app's own whose methods panic.
type panickingClient struct {
	subscriptions.Client
	in string
}

func (c *panickingClient) maybe(method string) {
	if c.in == method {
		panic("client of the app's own")
	}
}

func (c *panickingClient) Send(m subscriptions.Message) { c.maybe("Send"); c.Client.Send(m) }
func (c *panickingClient) IsDiscarded() bool            { c.maybe("IsDiscarded"); return c.Client.IsDiscarded() }
func (c *panickingClient) Discard()                     { c.maybe("Discard"); c.Client.Discard() }
func (c *panickingClient) Subscriptions(prefixes ...string) map[string]subscriptions.SubscriptionOptions {
	c.maybe("Subscriptions")
	return c.Client.Subscriptions(prefixes...)
}

// Whatever method of a client of the app's own panics: others are reached, and
// the process goes on.
func TestAPanicOfAClientOfTheApp(t *testing.T) {
	for _, method := range []string{"Send", "IsDiscarded", "Discard", "Subscriptions"} {
		app := newApp(t, topics.Config{QueueMessages: 3, WriteTimeout: 100 * time.Millisecond})
		panicking := &panickingClient{Client: subscriptions.NewDefaultClient(), in: method}
		panicking.Client.Subscribe("a")
		app.SubscriptionsBroker().Register(panicking)
		reader := newForeign(app, "a")

		for i := range 30 {
			require.NoError(t, topics.Notify(app, "a", i), method)
			<-reader.Channel()
		}
	}
}

// A decision that panics denies, wherever it is made, and nothing else ends.
// When it does not panic any longer, all is as before.
func TestAPanicInADecisionDenies(t *testing.T) {
	const unplanned = memRule + ` && @request.method != "X"`
	w := newWorld(t, map[string]any{"collection": "rooms", "subscribeRule": unplanned, "publishRule": unplanned}, noSweep())
	var boom atomic.Bool
	w.app.ConcurrentDB().(*dbx.DB).QueryLogFunc = func(_ context.Context, _ time.Duration, statement string, _ *databasesql.Rows, _ error) {
		if boom.Load() && strings.Contains(statement, "(1)") {
			panic("in a decision")
		}
	}
	w.kept(w.topic)

	// by the publisher, or by the plugin's goroutine
	boom.Store(true)
	w.set(w.ann, "role", "other")
	w.notify(w.topic, "secret")
	require.Equal(t, "topic_revoked", w.c.next().notice(t).Code)
	w.c.without("secret")

	// of a request
	r := w.s.publish(w.token, `{"topic":"`+w.topic+`","data":1}`)
	require.Equal(t, 403, r.status)
	require.Equal(t, "topic_rule_error", r.code("topic"))
	w.c.mustSubscribe(w.token, "public")
	w.c.mustSubscribe(w.token, w.topic, "public")
	require.Equal(t, "topic_rule_error", w.c.next().notice(t).Code)

	boom.Store(false)
	w.c.mustSubscribe(w.token, w.topic, "public")
	w.kept(w.topic)
}

// panickingLog is a log that panics.
type panickingLog struct{ slog.Handler }

func (l panickingLog) Handle(_ context.Context, _ slog.Record) error { panic("log") }

// A log that panics does not keep a slow client from being closed, nor access
// from being taken back, and the publisher does not see it.
func TestAPanicOfTheLog(t *testing.T) {
	config := noSweep()
	config.QueueMessages, config.QueueBytes = 3, 256<<10
	w := newWorld(t, map[string]any{"collection": "rooms", "subscribeRule": memRule}, config)
	topics.SetLogger(w.app.(*tests.TestApp).BaseApp, panickingLog{slog.DiscardHandler})

	w.delete(w.member)
	w.lost(w.topic)

	stalled := w.s.connectStalled()
	(&stream{s: w.s, id: stalled.id}).mustSubscribe("", "public")
	w.c.disconnect()
	require.Eventually(t, func() bool {
		w.notify("public", strings.Repeat("x", 10<<10))
		_, err := w.app.SubscriptionsBroker().ClientById(stalled.id)
		return err != nil
	}, patience, time.Microsecond)
}
