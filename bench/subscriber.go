package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// subscriber is one event stream connection. It checks what it receives.
type subscriber struct {
	conn   net.Conn
	id     string
	topics []string

	mu     sync.Mutex
	phases map[uint32]*receipts

	notices  atomic.Int32  // ready and recovered
	received *counter      // of all subscribers together
	stalled  chan struct{} // not nil: it does not read before this is closed
	ended    chan struct{}
	err      error // why it ended
}

// receipts is what one subscriber got in one phase.
type receipts struct {
	last    map[uint32]uint32 // publisher -> n
	count   int
	newest  int64  // Unix nanoseconds
	late    int    // after a later one of the same publisher, or again
	missing int    // never came, or late
	order   uint64 // a hash of all in their order
	took    []time.Duration
}

// connect opens the stream and waits for PB_CONNECT.
func connect(addr string, receiveBuffer int, received *counter) (*subscriber, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	if receiveBuffer > 0 {
		if err := conn.(*net.TCPConn).SetReadBuffer(receiveBuffer); err != nil {
			return nil, err
		}
	}
	s := &subscriber{conn: conn, received: received, phases: map[uint32]*receipts{}, ended: make(chan struct{})}

	request, err := http.NewRequest(http.MethodGet, "http://"+addr+"/api/realtime", nil)
	if err != nil {
		return nil, err
	}
	if err := request.Write(conn); err != nil {
		return nil, err
	}
	reader := bufio.NewReaderSize(conn, 2048)
	response, err := http.ReadResponse(reader, request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("connecting answered %s", response.Status)
	}

	connected := make(chan struct{})
	go func() {
		defer close(s.ended)
		s.err = s.read(bufio.NewReaderSize(response.Body, 2048), connected)
	}()
	select {
	case <-connected:
		return s, nil
	case <-s.ended:
		return nil, s.err
	}
}

var errNoClientID = errors.New("PB_CONNECT without a client id")

func (s *subscriber) read(stream *bufio.Reader, connected chan struct{}) error {
	var long []byte
	for {
		line, err := stream.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			long = append(long[:0], line...)
			for errors.Is(err, bufio.ErrBufferFull) {
				line, err = stream.ReadSlice('\n')
				long = append(long, line...)
			}
			line = long
		}
		if err != nil {
			return err
		}

		data, ok := bytes.CutPrefix(line, []byte("data:"))
		switch {
		case !ok:
		case s.id == "":
			var hello struct{ ClientID string }
			if err := json.Unmarshal(data, &hello); err != nil || hello.ClientID == "" {
				return errNoClientID
			}
			s.id = hello.ClientID
			close(connected)
		default:
			if s.stalled != nil {
				<-s.stalled
			}
			m, err := parseMessage(data)
			if err != nil && bytes.HasPrefix(data, []byte(`{"type":"`)) {
				s.notices.Add(1)
				continue
			}
			if err != nil {
				return fmt.Errorf("%w: %s", err, data)
			}
			s.receive(m)
		}
	}
}

func (s *subscriber) receive(m message) {
	now := time.Now().UnixNano()

	s.mu.Lock()
	r := s.phases[m.phase]
	if r == nil {
		r = &receipts{last: map[uint32]uint32{}, took: make([]time.Duration, 0, 256)}
		s.phases[m.phase] = r
	}
	r.count++
	r.newest = now
	switch last := r.last[m.publisher]; {
	case m.n == last+1:
		r.last[m.publisher] = m.n
	case m.n > last:
		r.missing += int(m.n - last - 1)
		r.last[m.publisher] = m.n
	default:
		r.late++
	}
	r.order = (r.order ^ uint64(m.publisher)<<32 ^ uint64(m.n)) * 1099511628211
	r.took = append(r.took, time.Duration(now-m.at))
	s.mu.Unlock()

	s.received.add()
}

func (s *subscriber) phase(phase uint32) receipts {
	s.mu.Lock()
	defer s.mu.Unlock()

	if r := s.phases[phase]; r != nil {
		return *r
	}
	return receipts{}
}

func (s *subscriber) close() {
	if s.stalled != nil {
		select {
		case <-s.stalled:
		default:
			close(s.stalled)
		}
	}
	_ = s.conn.Close() // it is thrown away
	<-s.ended
}
