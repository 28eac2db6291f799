package topics_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tests"
	"github.com/pocketbase/pocketbase/tools/logger"
	"github.com/pocketbase/pocketbase/tools/security"
	"github.com/pocketbase/pocketbase/tools/types"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/pbtopics/topics"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.Cleanup(func(code int) {
			for _, template := range []string{worldTemplate, appTemplate} {
				if template != "" {
					_ = os.RemoveAll(template)
				}
			}
			os.Exit(code)
		}),
		// core's cron ticker and its request log writer outlive a test app
		goleak.IgnoreAnyFunction("github.com/pocketbase/pocketbase/tools/cron.(*Cron).Start.func1.1"),
		goleak.IgnoreAnyFunction("database/sql.(*DB).connectionOpener"),
	)
}

const patience = 10 * time.Second

var appTemplate string // removed by TestMain

// appDir is the data directory that the test apps are copies of: PocketBase's
// own with all migrations, which take most of the time to make one.
var appDir = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "topics-app-*")
	if err != nil {
		return "", err
	}
	appTemplate = dir

	app, err := tests.NewTestApp()
	if err != nil {
		return "", err
	}
	defer app.Cleanup()
	if err := app.ResetBootstrapState(); err != nil { // closes the databases
		return "", err
	}
	return dir, os.CopyFS(dir, os.DirFS(app.DataDir()))
})

// newApp returns a test app with the plugin and without any topic rule.
func newApp(t testing.TB, config topics.Config) *tests.TestApp {
	t.Helper()

	dir, err := appDir()
	require.NoError(t, err)
	return newAppIn(t, dir, config)
}

// newAppIn returns a test app with the plugin on a copy of the data directory.
func newAppIn(t testing.TB, dir string, config topics.Config) *tests.TestApp {
	t.Helper()

	app, err := tests.NewTestApp(dir)
	require.NoError(t, err)
	t.Cleanup(app.Cleanup)
	require.NoError(t, topics.Register(app, config))

	return app
}

// rule is the value of a rule field.
func rule(text string) *string { return types.Pointer(text) }

// define saves a topic rule record.
func define(t testing.TB, app core.App, fields map[string]any) *core.Record {
	t.Helper()

	record, err := newRule(app, fields)
	require.NoError(t, err)
	require.NoError(t, app.Save(record))

	return record
}

func newRule(app core.App, fields map[string]any) (*core.Record, error) {
	collection, err := app.FindCollectionByNameOrId("_topics")
	if err != nil {
		return nil, err
	}
	record := core.NewRecord(collection)
	record.Load(fields)
	return record, nil
}

// newCollection saves a base collection without API rules.
func newCollection(t testing.TB, app core.App, name string, fields ...core.Field) *core.Collection {
	t.Helper()

	c := core.NewBaseCollection(name)
	c.Fields.Add(fields...)
	require.NoError(t, app.Save(c))

	return c
}

func newRecord(t testing.TB, app core.App, collection string, fields map[string]any) *core.Record {
	t.Helper()

	c, err := app.FindCollectionByNameOrId(collection)
	require.NoError(t, err)
	record := core.NewRecord(c)
	record.Load(fields)
	require.NoError(t, app.Save(record))

	return record
}

// newUser saves an auth record and returns it with a token.
func newUser(t testing.TB, app core.App, name string) (*core.Record, string) {
	t.Helper()

	user := newAuth(t, app, "users", name)
	token, err := user.NewAuthToken()
	require.NoError(t, err)

	return user, token
}

func newSuperuser(t testing.TB, app core.App) string {
	t.Helper()

	token, err := newAuth(t, app, core.CollectionNameSuperusers, "root").NewAuthToken()
	require.NoError(t, err)

	return token
}

func newAuth(t testing.TB, app core.App, collection, name string) *core.Record {
	t.Helper()

	c, err := app.FindCollectionByNameOrId(collection)
	require.NoError(t, err)
	record := core.NewRecord(c)
	record.SetEmail(name + "@topics.test")
	topics.SetCheapPassword(record, "1234567890")
	require.NoError(t, app.Save(record))

	return record
}

// server is an app behind a real HTTP server.
type server struct {
	t    testing.TB
	app  *tests.TestApp
	url  string
	http *http.Client
}

func serve(t testing.TB, app *tests.TestApp) *server {
	t.Helper()

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)

	ready := make(chan struct{})
	app.OnServe().BindFunc(func(e *core.ServeEvent) error {
		e.Listener = listener
		defer close(ready)
		return e.Next()
	})

	stopped := make(chan error, 1)
	go func() { stopped <- apis.Serve(app, apis.ServeConfig{HttpAddr: listener.Addr().String()}) }()

	select {
	case <-ready:
	case err := <-stopped:
		require.NoError(t, err)
	}

	s := &server{t: t, app: app, url: "http://" + listener.Addr().String(), http: &http.Client{Transport: &http.Transport{}}}
	t.Cleanup(func() {
		// as a process does it: the server ends first, then the app
		require.NoError(t, app.OnTerminate().Trigger(&core.TerminateEvent{App: app}))
		_ = listener.Close()
		require.NoError(t, <-stopped)
		s.http.CloseIdleConnections()
	})

	return s
}

// reply is an HTTP response that was read to its end.
type reply struct {
	status int
	body   string
}

// code returns the code of the first error at the path in the reply's data.
func (r reply) code(path ...string) string {
	var body struct {
		Data any `json:"data"`
	}
	_ = json.Unmarshal([]byte(r.body), &body)
	at := body.Data
	for _, p := range append(path, "code") {
		object, _ := at.(map[string]any)
		at = object[p]
	}
	code, _ := at.(string)
	return code
}

func (s *server) request(method, path, token, body string) reply {
	s.t.Helper()

	req, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
	require.NoError(s.t, err)
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", token)
	}

	res, err := s.http.Do(req)
	require.NoError(s.t, err)
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	require.NoError(s.t, err)

	return reply{status: res.StatusCode, body: string(raw)}
}

func (s *server) publish(token, body string) reply {
	s.t.Helper()
	return s.request(http.MethodPost, "/api/topics/publish", token, body)
}

// event is one server-sent event.
type event struct {
	id, name, data string
}

// stream is a realtime connection as an SDK opens it.
type stream struct {
	s      *server
	id     string
	events chan event
	closed chan struct{} // when the server has ended the connection
	cancel context.CancelFunc
	once   sync.Once
}

func (s *server) connect() *stream {
	s.t.Helper()

	ctx, cancel := context.WithCancel(context.Background())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/api/realtime", nil)
	require.NoError(s.t, err)
	res, err := s.http.Do(req)
	require.NoError(s.t, err)
	require.Equal(s.t, http.StatusOK, res.StatusCode)

	c := &stream{s: s, events: make(chan event, 20_000), closed: make(chan struct{}), cancel: cancel}
	go func() {
		defer close(c.closed)
		defer res.Body.Close()
		readEvents(res.Body, func(e event) { c.events <- e })
	}()
	s.t.Cleanup(c.disconnect)

	first := c.next()
	require.Equal(s.t, "PB_CONNECT", first.name)
	c.id = first.id

	return c
}

func readEvents(r io.Reader, handle func(event)) {
	var e event
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimSuffix(line, "\n")
		field, value, _ := strings.Cut(line, ":")
		switch {
		case line == "":
			if e != (event{}) {
				handle(e)
			}
			e = event{}
		case field == "id":
			e.id = value
		case field == "event":
			e.name = value
		case field == "data":
			e.data = value
		case field == "":
			handle(event{name: ":"})
		}
	}
}

func (c *stream) disconnect() {
	c.once.Do(func() {
		c.cancel()
		<-c.closed
	})
}

// subscribe sends the whole list of keys, as the SDKs do.
func (c *stream) subscribe(token string, keys ...string) reply {
	c.s.t.Helper()

	if keys == nil {
		keys = []string{}
	}
	var body bytes.Buffer
	require.NoError(c.s.t, json.NewEncoder(&body).Encode(map[string]any{"clientId": c.id, "subscriptions": keys}))

	return c.s.request(http.MethodPost, "/api/realtime", token, body.String())
}

func (c *stream) mustSubscribe(token string, keys ...string) {
	c.s.t.Helper()

	r := c.subscribe(token, keys...)
	require.Equal(c.s.t, http.StatusNoContent, r.status, r.body)
}

// next waits for the next event that is not a heartbeat.
func (c *stream) next() event {
	c.s.t.Helper()

	expired := time.NewTimer(patience)
	defer expired.Stop()
	for {
		select {
		case e := <-c.events:
			if e.name != ":" {
				return e
			}
		case <-expired.C:
			c.s.t.Fatal("no event came")
		}
	}
}

// quiet says that nothing has come. It sends a marker through the connection
// first, so that it does not have to wait.
func (c *stream) quiet() {
	c.s.t.Helper()
	require.Empty(c.s.t, c.drain())
}

// drain returns all events up to now.
func (c *stream) drain() []event {
	c.s.t.Helper()

	found, err := c.s.app.SubscriptionsBroker().ClientById(c.id)
	require.NoError(c.s.t, err)
	found.Send(message("test_marker", `"x"`))

	var events []event
	for {
		e := c.next()
		if e.name == "test_marker" {
			return events
		}
		events = append(events, e)
	}
}

// notice is a control message of the plugin.
type notice struct {
	Type    string `json:"type"`
	Topic   string `json:"topic"`
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (e event) notice(t testing.TB) notice {
	t.Helper()

	var data map[string]notice
	require.NoError(t, json.Unmarshal([]byte(e.data), &data))
	require.Contains(t, data, "@topics", e.data)
	return data["@topics"]
}

// logged counts the lines of the app's log that begin with message, of an app
// that keeps its log: see keepLogs.
func logged(t testing.TB, app core.App, message string) (count int) {
	t.Helper()

	// some versions write the log in the background, but in order
	marker := "marker " + security.RandomString(10)
	app.Logger().Error(marker)
	require.Eventually(t, func() bool {
		handler, ok := app.Logger().Handler().(*logger.BatchHandler)
		require.True(t, ok)
		require.NoError(t, handler.WriteAll(context.Background()))
		var written int
		require.NoError(t, app.AuxDB().Select("count(*)").From("_logs").Where(dbx.HashExp{"message": marker}).Row(&written))
		return written > 0 || app.Settings().Logs.MaxDays == 0 // it keeps none
	}, patience, time.Millisecond)
	require.NoError(t, app.AuxDB().Select("count(*)").From("_logs").
		Where(dbx.NewExp("substr(message, 1, {:n}) = {:message}", dbx.Params{"n": len(message), "message": message})).Row(&count))
	return count
}
