package topics_test

import (
	"context"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/pbtopics/topics"
)

// blackhole makes the system drop all that comes for a connection, unanswered:
// as if its network were gone.
func blackhole(t *testing.T, c *net.TCPConn) {
	t.Helper()
	raw, err := c.SyscallConn()
	require.NoError(t, err)
	nothing := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	require.NoError(t, raw.Control(func(fd uintptr) {
		err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(nothing)), Filter: &nothing[0]})
	}))
	require.NoError(t, err)
}

// A member whose network is gone leaves after heartbeat, write timeout and
// grace.
func TestADeadNetworkEndsInALeave(t *testing.T) {
	config := topics.Config{Heartbeat: 200 * time.Millisecond, WriteTimeout: time.Second, PresenceGrace: shortGrace}
	app, s := newPresenceApp(t, config)
	_, token := newUser(t, app, "ann")
	v := s.watch("", watching("room/1"))

	var lost *net.TCPConn
	s.http.Transport = &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		if tcp, ok := c.(*net.TCPConn); ok && lost == nil {
			lost = tcp
		}
		return c, err
	}}
	c := s.connect()
	c.mustSubscribe(token, "room/1")
	v.until("join")

	start := time.Now()
	blackhole(t, lost)
	v.until("leave")
	took := time.Since(start)
	require.GreaterOrEqual(t, took, config.WriteTimeout/2, "it took the timeout to find out")
	t.Logf("left after %v", took)
	require.EqualValues(t, 1, topics.From(app).Stats().WriteTimeouts)
}

// A client that takes what it gets, however slowly, is not cut off, though the
// system lets a write wait for longer than the timeout.
func TestASlowReaderIsNotCutOff(t *testing.T) {
	const size = 4 << 20

	for _, others := range []bool{false, true} {
		app := newApp(t, topics.Config{WriteTimeout: 500 * time.Millisecond, RecordQueueBytes: 64 << 20})
		if others { // with whom each message is one write
			app.OnRealtimeMessageSend().BindFunc(func(e *core.RealtimeMessageEvent) error { return e.Next() })
		}
		s := serve(t, app)
		slow, events := s.connectSlow(1 << 20)
		found, err := app.SubscriptionsBroker().ClientById(slow.id)
		require.NoError(t, err)
		found.Send(message("large", `"`+strings.Repeat("x", size)+`"`))
		found.Send(message("end", `1`))

		for _, want := range []string{"large", "end"} {
			select {
			case e, open := <-events:
				require.True(t, open, "cut off")
				require.Equal(t, want, e.name)
			case <-time.After(3 * patience):
				t.Fatal("nothing comes")
			}
		}
		require.Zero(t, topics.From(app).Stats().WriteTimeouts)
	}
}
