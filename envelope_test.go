package topics_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

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
