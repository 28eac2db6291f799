package topics_test

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

// A request that waits for another one with its idempotency key ends with its
// own context. Nothing is sent twice.
func TestAPublishDoesNotOutliveItsRequest(t *testing.T) {
	app := newApp(t, topics.Config{})
	app.OnServe().BindFunc(func(e *core.ServeEvent) error {
		e.Router.Bind(&hook.Handler[*core.RequestEvent]{Func: func(e *core.RequestEvent) error {
			if !strings.HasPrefix(e.Request.URL.Path, "/api/topics/publish") {
				return e.Next()
			}
			ctx, cancel := context.WithTimeout(e.Request.Context(), 50*time.Millisecond)
			defer cancel()
			e.Request = e.Request.WithContext(ctx)
			return e.Next()
		}})
		return e.Next()
	})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "public", "subscribeRule": "", "publishRule": ""})
	c := s.connect()
	c.mustSubscribe("", "public")

	release := topics.HoldIdempotencyKey(app, "public", "k", "1")
	r := s.publish("", `{"topic":"public","data":1,"idempotencyKey":"k"}`)
	require.Equal(t, http.StatusServiceUnavailable, r.status, r.body)
	require.Equal(t, "idempotency_key_busy", r.code("idempotencyKey"))
	r = s.publish("", `{"messages":[{"topic":"public","data":1,"idempotencyKey":"k"}]}`)
	require.Equal(t, "idempotency_key_busy", r.code("messages", "0", "idempotencyKey"))

	release()
	r = s.publish("", `{"topic":"public","data":1,"idempotencyKey":"k"}`)
	require.Equal(t, http.StatusOK, r.status, r.body)
	c.quiet()
	require.Equal(t, 1, topics.From(app).Stats().IdempotencyKeys)
}

// Guests of unknown addresses, and an account, each fill only what is theirs.
func TestKeysOfAnAccountStayThoughOthersHaveMany(t *testing.T) {
	app := newApp(t, topics.Config{MaxIdempotencyKeysPerSender: 3})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "public", "subscribeRule": "", "publishRule": "", "history": 100})
	_, ann := newUser(t, app, "ann")
	_, eve := newUser(t, app, "eve")

	send := func(token, key string) string {
		r := s.publish(token, `{"topic":"public","data":1,"idempotencyKey":"`+key+`"}`)
		require.Equal(t, http.StatusOK, r.status, r.body)
		return r.body
	}
	first := send(ann, "first")
	for _, key := range strings.Split("abcdefgh", "") {
		send(eve, key)
		send("", key)
	}
	require.Equal(t, first, send(ann, "first"))
	require.Equal(t, send(eve, "h"), send(eve, "h"))
	require.EqualValues(t, 5, topics.From(app).Stats().IdempotencyKeysEvicted)
}

// A key is kept with the message: a retry after a restart sends nothing. Another
// message with the same key is refused, before a restart and after it.
func TestAKeyIsKeptWithItsMessage(t *testing.T) {
	app, s := newHistoryApp(t, topics.Config{})
	define(t, app, map[string]any{"pattern": "live", "subscribeRule": "", "publishRule": ""})
	_, ann := newUser(t, app, "ann")
	send := func(token, topic, rest string) reply {
		return s.publish(token, `{"topic":"`+topic+`","idempotencyKey":"k",`+rest+`}`)
	}
	check := func() {
		t.Helper()
		for _, other := range []string{`"data":2,"event":"e"`, `"data":1`, `"data":1,"event":"e","except":"x"`} {
			r := send(ann, "a", other)
			require.Equal(t, http.StatusConflict, r.status, r.body)
			require.Equal(t, "idempotency_key_reused", r.code("idempotencyKey"))
		}
		require.Len(t, historyOf(t, app, "a"), 1)
	}
	first := send(ann, "a", `"data":1,"event":"e"`)
	require.Equal(t, http.StatusOK, first.status, first.body)
	require.Equal(t, first.body, send(ann, "a", `"data":1,"event":"e"`).body)
	check()
	r := s.publish(ann, `{"messages":[{"topic":"a","data":7},{"topic":"a","data":2,"idempotencyKey":"k"}]}`)
	require.Equal(t, "idempotency_key_reused", r.code("messages", "1", "idempotencyKey"), r.body)
	check() // none of them was sent
	require.Equal(t, http.StatusOK, send(ann, "live", `"data":1`).status)
	require.Equal(t, http.StatusConflict, send(ann, "live", `"data":2`).status)

	topics.SettleHistory(app)
	app, s = restart(t, app, topics.Config{}, false) // it was killed
	require.Equal(t, first.body, send(ann, "a", `"data":1,"event":"e"`).body)
	check()
	require.Equal(t, http.StatusOK, send("", "a", `"data":1`).status, "the key of somebody else")
	require.Equal(t, http.StatusConflict, send("", "a", `"data":2`).status)
}
