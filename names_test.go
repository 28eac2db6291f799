package topics_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	validation "github.com/pocketbase/ozzo-validation/v4"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tests"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

// clientNames are what browsers and SDKs take for their own.
var clientNames = []string{
	"error", "open", "message", "close", "done", "newListener", "removeListener",
	"__proto__", "constructor", "toString", "valueOf", "hasOwnProperty", "__defineGetter__",
	":error", "::PB_CONNECT",
}

// Nothing is sent under a name that the client's side takes for its own, whoever
// tries to, and record events of the same page are not concerned.
func TestNamesThatClientsTakeForTheirOwn(t *testing.T) {
	for _, config := range []topics.Config{{}, {AllowUnknown: true}} {
		app := newApp(t, config)
		keepLogs(app)
		s := serve(t, app)
		define(t, app, map[string]any{"pattern": "{any}", "subscribeRule": "", "publishRule": "", "presenceRule": "", "presence": true, "history": 5})
		notes := newCollection(t, app, "notes", &core.TextField{Name: "text"})
		notes.ListRule, notes.ViewRule = rule(""), rule("")
		require.NoError(t, app.Save(notes))

		// a leading space is not part of an event's name: " error" is error
		spaced := []string{" error", " PB_CONNECT", " ", "\u00a0error", "error ", "x\u2028y"}
		c := s.connect()
		c.mustSubscribe("", append(append([]string{"notes/*", "errors", "Error"}, spaced...), clientNames...)...)
		client, err := app.SubscriptionsBroker().ClientById(c.id)
		require.NoError(t, err)
		require.Len(t, client.Subscriptions(), 3)
		c.quiet()

		newRecord(t, app, "notes", map[string]any{"text": "hello"})
		require.Equal(t, "notes/*", c.next().name)
		for _, topic := range []string{"errors", "Error"} {
			require.NoError(t, topics.Notify(app, topic, 1))
			require.Equal(t, topic, c.next().name)
		}

		for _, name := range clientNames {
			require.ErrorIs(t, topics.Notify(app, name, 1), topics.ErrReservedTopic, name)
			_, err := topics.History(app, name, topics.HistoryOptions{})
			require.ErrorIs(t, err, topics.ErrReservedTopic, name)
			_, err = topics.Presence(app, name)
			require.ErrorIs(t, err, topics.ErrReservedTopic, name)

			const code = "topic_name_reserved"
			query := "?topic=" + url.QueryEscape(name)
			r := s.publish("", `{"topic":"`+name+`","data":1}`)
			require.Equal(t, http.StatusBadRequest, r.status)
			require.Equal(t, code, r.code("topic"), name)
			for _, path := range []string{"history", "presence"} {
				require.Equal(t, code, s.request(http.MethodGet, "/api/topics/"+path+query, "", "").code("topic"), name)
			}
			access := s.request(http.MethodGet, "/api/topics/access"+query, "", "").body
			require.Equal(t, 3, strings.Count(access, `"`+code+`"`), access)

			// with options the event has another name, so that it can be told
			optioned := key(name, map[string]any{"envelope": false})
			other := s.connect()
			other.mustSubscribe("", optioned)
			e := other.next()
			require.Equal(t, optioned, e.name)
			require.Equal(t, code, e.notice(t).Code)
			other.disconnect()
		}
		require.Positive(t, logged(t, app, "Refused to let a client subscribe to a topic"))
		c.quiet()
	}
}

func TestNamesThatClientsTakeForTheirOwnAreNoPatterns(t *testing.T) {
	bare, err := tests.NewTestApp()
	require.NoError(t, err)
	defer bare.Cleanup()

	app := newApp(t, topics.Config{})
	for _, name := range clientNames {
		record, err := newRule(app, map[string]any{"pattern": name})
		require.NoError(t, err)
		var faults validation.Errors
		require.ErrorAs(t, app.Save(record), &faults, name)
		var fault validation.Error
		require.ErrorAs(t, faults["pattern"], &fault)
		require.Equal(t, "validation_reserved_pattern", fault.Code())

		require.ErrorContains(t, topics.Register(bare, topics.Config{Topics: []topics.Topic{{Pattern: name}}}), "Config.Topics[0].Pattern")
	}
	for _, fine := range []string{"errors", "Error", "error/{id}", "room/error", "{x}"} {
		define(t, app, map[string]any{"pattern": fine})
	}
}

// A collection may have such a name: its topics are PocketBase's own.
func TestACollectionWithANameOfTheClients(t *testing.T) {
	app := newApp(t, topics.Config{})
	s := serve(t, app)
	messages := newCollection(t, app, "message", &core.TextField{Name: "text"})
	messages.ListRule = rule("")
	require.NoError(t, app.Save(messages))

	c := s.connect()
	c.mustSubscribe("", "message", "message/*")
	newRecord(t, app, "message", map[string]any{"text": "hello"})
	names := []string{c.next().name, c.next().name}
	require.ElementsMatch(t, []string{"message", "message/*"}, names)
}
