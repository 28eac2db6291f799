//go:build !linux

package topics

import (
	"net"
	"time"
)

// limitUnacknowledged does nothing: the system's own limits apply.
func limitUnacknowledged(*net.TCPConn, time.Duration) error { return nil }
