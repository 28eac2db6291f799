package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// subscriber is one account on one topic, over many connections.
type subscriber struct {
	run    *stress
	user   string
	token  string
	topic  string
	resume string // "" for none
	replay int
	random *rand.Rand

	mu      sync.Mutex
	removed time.Time // since when it is certainly no member

	// of the subscription's whole life; ids and last also under mu
	ids     map[int]string // of the messages it has
	last    int            // the newest
	skipped map[int]bool   // what a gap has covered
	gap     bool           // told since the last message
	started bool           // a first ready has come
}

func (s *subscriber) key() string {
	query := map[string]any{"envelope": true}
	if s.resume != "" {
		query["resume"] = s.resume
	}
	if s.replay > 0 {
		query["replay"] = s.replay
	}
	options, err := json.Marshal(map[string]any{"query": query})
	if err != nil {
		panic(err)
	}
	return s.topic + "?options=" + url.QueryEscape(string(options))
}

// live goes on until the end, one connection after the other.
func (s *subscriber) live() {
	for !s.run.over() {
		if err := s.connection(); err != nil {
			time.Sleep(20 * time.Millisecond) // the server is away
		}
	}
}

type envelope struct {
	Type    string `json:"type"`
	ID      string `json:"id"`
	Data    int    `json:"data"`
	Resumed *bool  `json:"resumed"`
	From    string `json:"from"`
	To      string `json:"to"`
	Count   *int   `json:"count"`
	Reason  string `json:"reason"`
}

// connection lasts until it is cut, by either side.
func (s *subscriber) connection() error {
	conn, err := net.Dial("tcp", s.run.address)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // it is thrown away
	s.run.track(conn)
	defer s.run.untrack(conn)

	if _, err := fmt.Fprintf(conn, "GET /api/realtime HTTP/1.1\r\nHost: %s\r\n\r\n", s.run.address); err != nil {
		return err
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}

	// how long it lasts, and whether it stops reading for a while, which is
	// shorter than what counts as received for certain
	if !s.run.calm() {
		cut := time.AfterFunc(time.Duration(s.random.ExpFloat64()*float64(1500*time.Millisecond)), func() {
			if s.run.calm() {
				return
			}
			if tcp, ok := conn.(*net.TCPConn); ok {
				_ = tcp.SetLinger(0) // a reset, at any byte
			}
			_ = conn.Close()
			s.run.truth.cuts.Add(1)
		})
		defer cut.Stop()
	}
	stall := s.random.IntN(8) == 0

	lines := bufio.NewReader(response.Body)
	first := true
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return nil
		}
		data, ok := strings.CutPrefix(line, "data:")
		if !ok {
			continue
		}
		if first {
			first = false
			var hello struct {
				ClientID string `json:"clientId"`
			}
			if err := json.Unmarshal([]byte(data), &hello); err != nil {
				return err
			}
			body, err := json.Marshal(map[string]any{"clientId": hello.ClientID, "subscriptions": []string{s.key()}})
			if err != nil {
				return err
			}
			if err := s.run.post("/api/realtime", s.token, string(body), nil); err != nil {
				return err
			}
			continue
		}
		var e envelope
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			s.run.truth.fault("%s of %s got %q", s.user, s.topic, data)
			continue
		}
		if stop := s.receive(e); stop {
			return nil
		}
		if stall && !s.run.calm() && s.random.IntN(50) == 0 {
			s.run.truth.stalls.Add(1)
			time.Sleep(overlap / 4)
		}
	}
}

// receive reports whether the connection is of no use any more.
func (s *subscriber) receive(e envelope) (stop bool) {
	t := s.run.truth

	switch e.Type {
	case "message":
		s.message(e)
	case "ready":
		resumed := e.Resumed != nil && *e.Resumed
		if s.resume != "" && s.started && !resumed {
			t.fault("%s of %s was not resumed", s.user, s.topic)
		}
		if s.resume == "" {
			s.last = 0 // every connection is a beginning
		}
		s.started = true
	case "gap":
		t.gaps.Add(1)
		s.gap = true
		s.checkGap(e)
	case "recovered":
		t.recovered.Add(1)
	case "denied", "revoked":
		t.revoked.Add(1)
		time.Sleep(30 * time.Millisecond)
		return true // come again
	}
	return false
}

func (s *subscriber) message(e envelope) {
	t := s.run.truth
	t.delivered.Add(1)
	n := e.Data
	now := time.Now()

	if id, known := s.ids[n]; known {
		if id != e.ID {
			t.fault("%s of %s got message %d as %s and as %s", s.user, s.topic, n, id, e.ID)
		}
		if s.resume == "" && s.replay == 0 {
			t.fault("%s of %s got message %d twice", s.user, s.topic, n)
		}
		t.repeated.Add(1)
		return
	}
	if n < s.last && !s.skipped[n] {
		t.fault("%s of %s got message %d after %d", s.user, s.topic, n, s.last)
	}

	s.mu.Lock()
	s.ids[n] = e.ID
	removed := s.removed
	s.mu.Unlock()
	if !removed.IsZero() && t.begun(s.topic, n).After(removed) && now.After(removed) {
		t.fault("%s of %s got message %d, which was published %v after it lost access", s.user, s.topic, n, t.begun(s.topic, n).Sub(removed))
	}

	if s.last > 0 && !s.gap {
		for _, lost := range t.between(s.topic, s.last, n) {
			t.fault("%s of %s (resume %q) got message %d after %d and never %d, without a word", s.user, s.topic, s.resume, n, s.last, lost)
		}
	}
	if s.last > 0 {
		for missed := s.last + 1; missed < n; missed++ {
			// after a kill the server may have it again, while newer ones are lost
			s.skipped[missed] = true
		}
	}
	s.gap = false
	s.last = max(s.last, n)
}

// checkGap looks whether it is one.
func (s *subscriber) checkGap(e envelope) {
	t := s.run.truth
	switch e.Reason {
	case "epoch":
		if !t.killed() {
			t.fault("%s of %s was told of an unclean stop, and there was none", s.user, s.topic)
		}
	case "evicted":
		if !strings.HasPrefix(s.topic, "evict/") && !t.killed() && !s.run.evicting.Load() {
			t.fault("%s of %s was told of an eviction", s.user, s.topic)
		}
	case "expired", "slow":
		if strings.HasPrefix(s.topic, "many/") {
			t.fault("%s of %s was told that messages had expired: %+v", s.user, s.topic, e)
		}
		if e.Count == nil || *e.Count < 1 {
			t.fault("%s of %s was told of a gap of nothing: %+v", s.user, s.topic, e)
		}
	default:
		t.fault("%s of %s was told of a gap by %q", s.user, s.topic, e.Reason)
	}
}

func (s *subscriber) has(n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()

	_, ok := s.ids[n]
	return ok
}
