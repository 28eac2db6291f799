package topics

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
)

// A client whose network is gone takes what is written for as long as the
// system's buffers last, which heartbeats never fill. So a connection also ends
// when what was sent is not acknowledged in time.

type connKey struct{}

// keepConns lets requests find their network connection.
func keepConns(server *http.Server) {
	if server == nil {
		return // somebody triggers OnServe without one
	}
	before := server.ConnContext
	server.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if before != nil {
			ctx = before(ctx, c)
		}
		return context.WithValue(ctx, connKey{}, c)
	}
}

// tcpOf returns the request's connection, or nil if it is of another kind.
func tcpOf(r *http.Request) *net.TCPConn {
	c, _ := r.Context().Value(connKey{}).(net.Conn)
	if secured, ok := c.(*tls.Conn); ok {
		c = secured.NetConn()
	}
	tcp, _ := c.(*net.TCPConn)
	return tcp
}
