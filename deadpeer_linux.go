package topics

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

const knowsAcks = true

// acknowledged asks the system (tcp(7), TCP_INFO). What a client has no room for
// is not sent, so it waits for nothing.
func acknowledged(c *net.TCPConn) acks {
	raw, err := c.SyscallConn()
	if err != nil {
		return acks{}
	}
	var info *unix.TCPInfo
	controlled := raw.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	})
	if controlled != nil || err != nil {
		return acks{} // it is closed
	}
	return acks{waits: info.Unacked > 0, since: time.Duration(info.Last_ack_recv) * time.Millisecond, bytes: info.Bytes_acked}
}
