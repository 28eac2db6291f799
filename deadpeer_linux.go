package topics

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

const knowsAcks = true

// acknowledged reports whether something that was sent waits for its
// acknowledgement, and how long ago the last one came (tcp(7), TCP_INFO). What
// a client has no room for is not sent, so it waits for nothing.
func acknowledged(c *net.TCPConn) (waits bool, since time.Duration) {
	raw, err := c.SyscallConn()
	if err != nil {
		return false, 0
	}
	var info *unix.TCPInfo
	controlled := raw.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	})
	if controlled != nil || err != nil {
		return false, 0 // it is closed
	}
	return info.Unacked > 0, time.Duration(info.Last_ack_recv) * time.Millisecond
}
