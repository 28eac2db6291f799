package topics_test

import (
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

func TestTheTokenExpires(t *testing.T) {
	w := newWorld(t, map[string]any{"subscribeRule": "@request.auth.id != ''"}, topics.Config{SweepInterval: -1})

	short, err := w.ann.NewStaticAuthToken(2 * time.Second)
	require.NoError(t, err)
	c := w.s.connect()
	c.mustSubscribe(short, w.topic, "public")
	c.quiet()

	// told at its end, not at the next message
	e := c.next()
	require.Equal(t, w.topic, e.name)
	require.Equal(t, "topic_revoked", e.notice(t).Code)
	require.Contains(t, e.notice(t).Message, "Sign in")

	w.notify(w.topic, "after")
	w.notify("public", "still")
	require.Equal(t, `"still"`, c.next().data)

	// whoever has a token that is still good is not affected
	require.Equal(t, `"after"`, w.c.next().data)
	c.mustSubscribe(w.token, w.topic)
	w.notify(w.topic, "back")
	require.Equal(t, `"back"`, c.next().data)
}

func TestTheClock(t *testing.T) {
	w := newWorld(t, map[string]any{"subscribeRule": ""}, topics.Config{SweepInterval: -1})
	events := newCollection(t, w.app, "shows", &core.DateField{Name: "until"})
	show := newRecord(t, w.app, "shows", map[string]any{"until": time.Now().Add(2 * time.Second)})
	define(t, w.app, map[string]any{"pattern": "show/{id}", "collection": events.Id, "subscribeRule": "until > @now"})
	topic := "show/" + show.Id
	w.c.drain()
	w.c.mustSubscribe(w.token, topic, "public")
	w.kept(topic)

	require.Equal(t, "topic_revoked", w.c.next().notice(t).Code)
	w.notify(topic, "after")
	w.c.quiet()
}

// Raw SQL and other processes are found by the sweep.
func TestTheSweepFindsWhatNoHookTells(t *testing.T) {
	for name, statement := range map[string]string{
		"record":     "DELETE FROM memberships",
		"auth":       "DELETE FROM users",
		"token":      "UPDATE users SET tokenKey = 'changed' || id",
		"topic rule": "UPDATE _topics SET subscribeRule = 'null' WHERE pattern = 'room/{id}'",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, map[string]any{"subscribeRule": byMembership}, topics.Config{SweepInterval: 100 * time.Millisecond})
			w.kept(w.topic)
			sql(t, w.app, statement)
			require.Equal(t, "topic_revoked", w.c.next().notice(t).Code)
			w.notify(w.topic, "after")
			w.c.quiet()
		})
	}
}
