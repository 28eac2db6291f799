package topics_test

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

// stalledStream is a connection whose reader stops after PB_CONNECT.
type stalledStream struct {
	conn net.Conn
	id   string
}

func (s *server) connectStalled() *stalledStream {
	s.t.Helper()

	conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	require.NoError(s.t, err)
	s.t.Cleanup(func() { _ = conn.Close() })
	require.NoError(s.t, conn.(*net.TCPConn).SetReadBuffer(4096))
	_, err = fmt.Fprint(conn, "GET /api/realtime HTTP/1.1\r\nHost: topics\r\n\r\n")
	require.NoError(s.t, err)

	buf := make([]byte, 4096)
	var head string
	for !strings.Contains(head, "clientId") {
		n, err := conn.Read(buf)
		require.NoError(s.t, err)
		head += string(buf[:n])
	}
	_, rest, _ := strings.Cut(head, "id:")
	id, _, _ := strings.Cut(rest, "\n")

	return &stalledStream{conn: conn, id: id}
}

// One stalled client among a hundred costs nobody else anything.
func TestOneStalledClientAmongAHundred(t *testing.T) {
	// a deadline that never comes: whoever waits for the stalled client hangs
	app := newApp(t, topics.Config{WriteTimeout: time.Hour, QueueMessages: 100_000, QueueBytes: 512 << 20})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "a", "subscribeRule": ""})

	streams := make([]*stream, 100)
	for i := range streams {
		streams[i] = s.connect()
		streams[i].mustSubscribe("", "a")
	}
	stalled := s.connectStalled()
	(&stream{s: s, id: stalled.id}).mustSubscribe("", "a")

	const messages = 150
	s.stall(messages)

	for _, c := range streams {
		events := c.drain()
		require.Len(t, events, messages)
		for i, e := range events {
			require.True(t, strings.HasPrefix(e.data, fmt.Sprintf(`{"i":%d,`, i)))
		}
	}
	require.Equal(t, len(streams)+1, app.SubscriptionsBroker().TotalClients(), "the stalled client is still there")
}

// stall sends more to topic a than the kernel's buffers of a connection take.
func (s *server) stall(messages int) {
	s.t.Helper()

	padding := strings.Repeat("x", 60<<10)
	for i := range messages {
		data := struct {
			I       int    `json:"i"`
			Padding string `json:"padding"`
		}{I: i}
		if i%3 == 0 {
			data.Padding = padding
		}
		require.NoError(s.t, topics.Notify(s.app, "a", data))
	}
}

// A stalled client is gone within the deadline.
func TestStalledClientIsGone(t *testing.T) {
	const timeout = 300 * time.Millisecond

	app := newApp(t, topics.Config{WriteTimeout: timeout, QueueMessages: 100_000, QueueBytes: 512 << 20})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "a", "subscribeRule": ""})
	stalled := s.connectStalled()
	(&stream{s: s, id: stalled.id}).mustSubscribe("", "a")

	s.stall(1000)

	require.Eventually(t, func() bool { return app.SubscriptionsBroker().TotalClients() == 0 }, patience, timeout/50)
}

// A client whose queue is full is closed at once, long before the deadline.
func TestSlowConsumerIsClosed(t *testing.T) {
	for name, config := range map[string]topics.Config{
		"messages": {QueueMessages: 100, QueueBytes: 1 << 30, WriteTimeout: time.Hour},
		"bytes":    {QueueMessages: 1 << 30, QueueBytes: 1 << 20, WriteTimeout: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			app := newApp(t, config)
			s := serve(t, app)
			define(t, app, map[string]any{"pattern": "a", "subscribeRule": ""})
			c := s.connectStalled()
			(&stream{s: s, id: c.id}).mustSubscribe("", "a")

			data := strings.Repeat("x", 60<<10)
			for i := 0; app.SubscriptionsBroker().TotalClients() > 0; i++ {
				require.Less(t, i, 10_000)
				require.NoError(t, topics.Notify(app, "a", data))
			}
		})
	}
}

// Every handler that others have bound sees each message once, in order, and
// may change it, skip it, or end the connection.
func TestOthersSeeEachMessage(t *testing.T) {
	app := newApp(t, topics.Config{})
	define(t, app, map[string]any{"pattern": "a", "subscribeRule": ""})

	var mu sync.Mutex
	seen := map[int][]string{}
	for _, priority := range []int{-99, 0, 99} {
		app.OnRealtimeMessageSend().Bind(handler(priority, func(e *core.RealtimeMessageEvent) error {
			mu.Lock()
			seen[priority] = append(seen[priority], e.Message.Name+string(e.Message.Data))
			mu.Unlock()
			return e.Next()
		}))
	}
	app.OnRealtimeMessageSend().BindFunc(func(e *core.RealtimeMessageEvent) error {
		switch string(e.Message.Data) {
		case `"skip"`:
			return nil
		case `"change"`:
			e.Message.Data = []byte(`"changed"`)
		case `"end"`:
			return errors.New("ended by another plugin")
		}
		return e.Next()
	})

	s := serve(t, app)
	c := s.connect()
	c.mustSubscribe("", "a")

	want := []string{fmt.Sprintf(`PB_CONNECT{"clientId":"%s"}`, c.id)}
	for i := range 200 {
		require.NoError(t, topics.Notify(app, "a", i))
		want = append(want, fmt.Sprintf("a%d", i))
	}
	for i := range 200 {
		require.Equal(t, fmt.Sprint(i), c.next().data)
	}
	mu.Lock()
	for _, priority := range []int{-99, 0, 99} {
		require.Equal(t, want, seen[priority])
	}
	mu.Unlock()

	require.NoError(t, topics.Notify(app, "a", "skip"))
	require.NoError(t, topics.Notify(app, "a", "change"))
	require.Equal(t, `"changed"`, c.next().data)
	require.NoError(t, topics.Notify(app, "a", "end"))
	<-c.closed
}

func TestHeartbeatKeepsAQuietConnection(t *testing.T) {
	for _, others := range []bool{false, true} {
		app := newApp(t, topics.Config{Heartbeat: 20 * time.Millisecond})
		var strange atomic.Int64
		if others {
			app.OnRealtimeMessageSend().BindFunc(func(e *core.RealtimeMessageEvent) error {
				if e.Message.Name == "" {
					strange.Add(1)
				}
				return e.Next()
			})
		}
		app.OnRealtimeConnectRequest().BindFunc(func(e *core.RealtimeConnectRequestEvent) error {
			e.IdleTimeout = 200 * time.Millisecond
			return e.Next()
		})
		s := serve(t, app)
		c := s.connect()

		for range 20 { // twice the idle timeout
			select {
			case e := <-c.events:
				require.Equal(t, ":", e.name)
			case <-c.closed:
				t.Fatal("cut as idle")
			}
		}
		require.Zero(t, strange.Load(), "heartbeats are not messages")
	}
}

func TestNoHeartbeat(t *testing.T) {
	app := newApp(t, topics.Config{Heartbeat: -1})
	app.OnRealtimeConnectRequest().BindFunc(func(e *core.RealtimeConnectRequestEvent) error {
		e.IdleTimeout = 50 * time.Millisecond
		return e.Next()
	})
	s := serve(t, app)
	c := s.connect()
	<-c.closed
	require.Empty(t, c.events)
}

// Send against Discard is a data race in core's client.
func TestSendingWhileClientsLeave(t *testing.T) {
	// nobody is slow here, however fast the publisher is
	app := newApp(t, topics.Config{QueueMessages: 1 << 30, QueueBytes: 1 << 40})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "a", "subscribeRule": ""})

	stop := make(chan struct{})
	var publisher sync.WaitGroup
	defer publisher.Wait()
	defer close(stop)
	publisher.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if err := topics.Notify(app, "a", i); err != nil {
				t.Error(err)
			}
			for _, c := range app.SubscriptionsBroker().Clients() {
				c.Send(message("direct", "1"))
			}
		}
	})

	for range 20 {
		c := s.connect()
		c.mustSubscribe("", "a")
		c.next()
		if found, err := app.SubscriptionsBroker().ClientById(c.id); err == nil {
			found.Discard()
			found.Discard()
			found.Subscribe("a") // too late: must not stay in any index
			found.Send(message("late", "1"))
		}
		c.disconnect()
	}
}

// Record events of core pass through the client in the order they arrive in.
func TestSendKeepsOrder(t *testing.T) {
	app := newApp(t, topics.Config{QueueMessages: 10_000})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "a", "subscribeRule": ""})
	c := s.connect()
	c.mustSubscribe("", "a")
	found, err := app.SubscriptionsBroker().ClientById(c.id)
	require.NoError(t, err)

	for i := range 1000 {
		if i%2 == 0 {
			found.Send(message("record", fmt.Sprint(i)))
			continue
		}
		require.NoError(t, topics.Notify(app, "a", i))
	}
	for i := range 1000 {
		require.Equal(t, fmt.Sprint(i), c.next().data)
	}
}

// A message that is larger than the whole queue still passes when nothing
// else waits: records may be that large.
func TestALargeRecordEventPasses(t *testing.T) {
	app := newApp(t, topics.Config{})
	s := serve(t, app)
	c := s.connect()
	found, err := app.SubscriptionsBroker().ClientById(c.id)
	require.NoError(t, err)
	found.Send(message("large", `"`+strings.Repeat("x", 3<<20)+`"`))
	require.Len(t, c.next().data, 3<<20+2)
}

// A recorder supports no deadline, which must not matter.
func TestConnectionWithoutDeadlines(t *testing.T) {
	app := newApp(t, topics.Config{})
	router, err := apis.NewRouter(app)
	require.NoError(t, err)
	serving := &core.ServeEvent{App: app, Router: router}

	require.NoError(t, app.OnServe().Trigger(serving, func(e *core.ServeEvent) error {
		mux, err := e.Router.BuildMux()
		require.NoError(t, err)

		ended := make(chan struct{})
		recorder := httptest.NewRecorder()
		go func() {
			defer close(ended)
			mux.ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, "/api/realtime", nil))
		}()
		require.Eventually(t, func() bool { return app.SubscriptionsBroker().TotalClients() == 1 }, patience, time.Millisecond)
		require.NoError(t, app.OnTerminate().Trigger(&core.TerminateEvent{App: app}))
		<-ended
		require.Contains(t, recorder.Body.String(), "event:PB_CONNECT")
		return nil
	}))
}

// Termination ends every connection, also those that are blocked in a write,
// without waiting for their deadline.
func TestTerminationEndsEverything(t *testing.T) {
	app := newApp(t, topics.Config{WriteTimeout: time.Hour, QueueMessages: 1 << 20, QueueBytes: 1 << 30})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "a", "subscribeRule": ""})
	stalled := s.connectStalled()
	(&stream{s: s, id: stalled.id}).mustSubscribe("", "a")
	c := s.connect()
	newForeign(app, "a") // never reads

	for range 500 {
		require.NoError(t, topics.Notify(app, "a", strings.Repeat("x", 60<<10)))
	}

	require.NoError(t, app.OnTerminate().Trigger(&core.TerminateEvent{App: app}))
	<-c.closed
	require.Eventually(t, func() bool {
		_, err := app.SubscriptionsBroker().ClientById(stalled.id)
		return err != nil
	}, patience, time.Millisecond)
	require.ErrorIs(t, topics.Notify(app, "a", 1), topics.ErrClosed)
	// TestMain finds what is left running
}
