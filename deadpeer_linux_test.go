package topics_test

import (
	"context"
	"net"
	"net/http"
	"testing"
	"time"

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
