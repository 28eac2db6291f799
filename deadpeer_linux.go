package topics

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// limitUnacknowledged lets the system end the connection when what was sent is
// not acknowledged for that long (tcp(7), TCP_USER_TIMEOUT).
func limitUnacknowledged(c *net.TCPConn, limit time.Duration) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(limit.Milliseconds()))
	})
	if err != nil {
		return err
	}
	return set
}
