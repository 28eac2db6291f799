package topics_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tests"
	"github.com/pocketbase/pocketbase/tools/security"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

// slowServer serves requests whose headers come long before their body.
type slowServer struct {
	*server
	arrived chan struct{} // the headers have, and core has read the account
}

func serveSlow(t testing.TB, app *tests.TestApp) *slowServer {
	t.Helper()

	arrived := make(chan struct{}, 1)
	app.OnServe().BindFunc(func(e *core.ServeEvent) error {
		e.Router.BindFunc(func(e *core.RequestEvent) error {
			if e.Request.Header.Get("X-Slow") != "" {
				arrived <- struct{}{}
			}
			return e.Next()
		})
		return e.Next()
	})
	return &slowServer{serve(t, app), arrived}
}

// post sends the headers and, when meanwhile has returned, the body.
func (s *slowServer) post(path, token, body string, meanwhile func()) reply {
	s.t.Helper()

	conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	require.NoError(s.t, err)
	defer func() { _ = conn.Close() }() // the answer was read
	require.NoError(s.t, conn.SetDeadline(time.Now().Add(patience)))
	_, err = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nX-Slow: 1\r\nConnection: close\r\nAuthorization: %s\r\n"+
		"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n", path, token, len(body))
	require.NoError(s.t, err)
	select {
	case <-s.arrived:
	case <-time.After(patience):
		s.t.Fatal("the headers did not arrive")
	}

	meanwhile()
	_, err = io.WriteString(conn, body)
	require.NoError(s.t, err)
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(s.t, err)
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	require.NoError(s.t, err)
	return reply{status: res.StatusCode, body: string(raw)}
}

// What happens to an account between the headers of a request and its body
// counts, whatever the request and however its rule is evaluated.
func TestAnAccountChangesBeforeTheBodyComes(t *testing.T) {
	const soon = 2 * time.Second // a token's end has no fractions of a second

	requests := map[string]struct {
		collection string
		rule       *string // for everything; with nil superusers only
		post       func(s *slowServer, c *stream, token string, meanwhile func()) (allowed bool)
	}{
		"publish":                        {"users", rule("@request.auth.id != ''"), publishSlowly},
		"publish, a rule without a plan": {"users", rule("@request.auth.id != '' && @request.auth.email != '' && @request.body.data = 1"), publishSlowly},
		"publish, superuser":             {core.CollectionNameSuperusers, nil, publishSlowly},
		"state": {"users", rule("@request.auth.id != ''"), func(s *slowServer, c *stream, token string, meanwhile func()) bool {
			c.mustSubscribe(token, "room/1")
			r := s.post("/api/topics/presence", token, fmt.Sprintf(`{"topic":"room/1","clientId":%q,"state":{}}`, c.id), meanwhile)
			return r.status == http.StatusNoContent
		}},
		"subscribe":                        {"users", rule("@request.auth.id != ''"), subscribeSlowly},
		"subscribe, a rule without a plan": {"users", rule("@request.auth.email != ''"), subscribeSlowly},
		"subscribe, superuser":             {core.CollectionNameSuperusers, nil, subscribeSlowly},
	}
	changes := map[string]func(t *testing.T, app core.App, account *core.Record){
		"nothing": func(*testing.T, core.App, *core.Record) {},
		"deleted": func(t *testing.T, app core.App, account *core.Record) { require.NoError(t, app.Delete(account)) },
		"another token key": func(t *testing.T, app core.App, account *core.Record) {
			account.RefreshTokenKey()
			require.NoError(t, app.Save(account))
		},
		"another secret": func(t *testing.T, app core.App, account *core.Record) {
			c, err := app.FindCollectionByNameOrId(account.Collection().Id)
			require.NoError(t, err)
			c.AuthToken.Secret = security.RandomString(50)
			require.NoError(t, app.Save(c))
		},
		"expired": func(*testing.T, core.App, *core.Record) { time.Sleep(soon) },
	}

	for name, request := range requests {
		for change, apply := range changes {
			t.Run(name+"/"+change, func(t *testing.T) {
				t.Parallel()
				app := newApp(t, topics.Config{SweepInterval: -1})
				s := serveSlow(t, app)
				newAuth(t, app, request.collection, "another") // there must be one superuser
				account := newAuth(t, app, request.collection, "ann")
				token, err := account.NewStaticAuthToken(soon)
				if change != "expired" {
					token, err = account.NewAuthToken()
				}
				require.NoError(t, err)
				define(t, app, map[string]any{"pattern": "room/{x}", "subscribeRule": request.rule, "publishRule": request.rule, "presenceRule": request.rule, "presence": true})

				allowed := request.post(s, s.connect(), token, func() { apply(t, app, account) })
				require.Equal(t, change == "nothing", allowed)
			})
		}
	}
}

func publishSlowly(s *slowServer, _ *stream, token string, meanwhile func()) bool {
	r := s.post("/api/topics/publish", token, `{"topic":"room/1","data":1}`, meanwhile)
	if r.status != http.StatusOK {
		require.Equal(s.t, http.StatusForbidden, r.status, r.body)
		require.Equal(s.t, "topic_denied", r.code("topic"))
	}
	return r.status == http.StatusOK
}

func subscribeSlowly(s *slowServer, c *stream, token string, meanwhile func()) bool {
	r := s.post("/api/realtime", token, fmt.Sprintf(`{"clientId":%q,"subscriptions":["room/1"]}`, c.id), meanwhile)
	require.Equal(s.t, http.StatusNoContent, r.status, r.body)
	require.NoError(s.t, topics.Notify(s.app, "room/1", "message"))
	e := c.next()
	if e.data == `"message"` {
		return true
	}
	require.Equal(s.t, "topic_denied", e.notice(s.t).Code)
	c.quiet()
	return false
}

// Whoever is not there any more is not named as a message's sender either.
func TestASenderThatIsGone(t *testing.T) {
	app := newApp(t, topics.Config{})
	s := serveSlow(t, app)
	define(t, app, map[string]any{"pattern": "public", "subscribeRule": "", "publishRule": ""})
	ann, token := newUser(t, app, "ann")
	c := s.connect()
	c.mustSubscribe("", key("public", map[string]any{"envelope": true}))
	c.drain()

	for _, change := range []func(){func() {}, func() { require.NoError(t, app.Delete(ann)) }} {
		r := s.post("/api/topics/publish", token, `{"topic":"public","data":1}`, change)
		require.Equal(t, http.StatusOK, r.status, r.body)
	}
	var first, second struct {
		Sender *topics.Sender `json:"sender"`
	}
	require.NoError(t, json.Unmarshal([]byte(c.next().data), &first))
	require.NoError(t, json.Unmarshal([]byte(c.next().data), &second))
	require.Equal(t, ann.Id, first.Sender.ID)
	require.Nil(t, second.Sender)
}

// An app may know its users by something that is no token of PocketBase.
func TestAnAccountWithoutAToken(t *testing.T) {
	app := newApp(t, topics.Config{SweepInterval: -1})
	users, err := app.FindCollectionByNameOrId("users")
	require.NoError(t, err)
	users.AuthToken.Duration = 2
	require.NoError(t, app.SaveNoValidate(users))
	ann, _ := newUser(t, app, "ann")
	app.OnServe().BindFunc(func(e *core.ServeEvent) error {
		e.Router.BindFunc(func(e *core.RequestEvent) error {
			if e.Request.Header.Get("Authorization") == "session" {
				e.Auth = ann
			}
			return e.Next()
		})
		return e.Next()
	})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "a", "subscribeRule": "@request.auth.id != ''", "publishRule": "@request.auth.id != ''"})

	c := s.connect()
	c.mustSubscribe("session", "a")
	require.Equal(t, 200, s.publish("session", `{"topic":"a","data":1}`).status)
	require.Equal(t, "1", c.next().data)

	// after as long as a token would have been good
	require.Equal(t, "topic_revoked", c.next().notice(t).Code)
	require.NoError(t, topics.Notify(app, "a", 2))
	c.quiet()
}
