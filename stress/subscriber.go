package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// subscriber is an account or a guest on one topic, over many connections.
type subscriber struct {
	run     *stress
	user    string // "" for a guest
	token   string
	topic   string
	resume  string // "" for none
	replay  int
	watches bool // it asks who is there
	sees    bool // unless that was taken, it may know
	states  bool // it sets them
	option  bool // it comes with one
	random  *rand.Rand

	mu       sync.Mutex
	person   *person // nil: a guest who does not know yet who it is
	view     view    // of this connection
	clientID string

	// of the subscription's whole life; ids and last also under mu
	ids     map[int]string // of the messages it has
	first   int            // the first of all
	last    int            // the newest
	skipped map[int]bool   // what a gap has covered
	gap     bool           // told since the last message
	evicted bool           // and one of these gaps was an eviction
	started time.Time      // when the first ready came
	begun   string         // how the connection began, for faults
}

// name is for faults.
func (s *subscriber) name() string {
	if s.user == "" {
		return strings.TrimSpace("guest " + s.resume)
	}
	return strings.TrimSpace(s.user + " " + s.resume)
}

func (s *subscriber) key() string {
	query := map[string]any{"envelope": true}
	if s.resume != "" {
		query["resume"] = s.resume
	}
	if s.replay > 0 {
		query["replay"] = s.replay
	}
	if s.watches {
		query["presence"] = true
	}
	if s.option {
		query["state"] = map[string]int{"n": s.run.crowd.setsState(s.person)}
	}
	options, err := json.Marshal(map[string]any{"query": query})
	if err != nil {
		panic(err)
	}
	return s.topic + "?options=" + url.QueryEscape(string(options))
}

// live goes on until the end, one connection after the other. Now and then it
// is away for longer than the grace.
func (s *subscriber) live() {
	for !s.run.over() {
		if s.random.IntN(30) == 0 {
			for end := time.Now().Add(grace * 3 / 2); time.Now().Before(end) && !s.run.calm(); {
				time.Sleep(50 * time.Millisecond)
			}
		}
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
	Certain *bool  `json:"certain"`

	Code    string  `json:"code"`
	Member  string  `json:"member"`
	Members []shown `json:"members"`
}

// connection lasts until it is cut, by either side.
func (s *subscriber) connection() error {
	visit := s.begin()
	defer s.run.crowd.end(visit)

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
			s.run.crowd.end(visit)
			s.run.truth.cuts.Add(1)
		})
		defer cut.Stop()
	}
	stalls := s.random.IntN(8) == 0
	var stalled time.Time

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
			s.mu.Lock()
			s.clientID = hello.ClientID
			s.mu.Unlock()
			continue
		}
		var e envelope
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			s.run.truth.fault("%s of %s got %q", s.name(), s.topic, data)
			continue
		}
		if stop := s.receive(visit, e); stop {
			return nil
		}
		if stalls && !s.run.calm() && s.random.IntN(50) == 0 && time.Since(stalled) > s.run.overlap() {
			s.run.truth.stalls.Add(1)
			time.Sleep(500 * time.Millisecond)
			stalled = time.Now()
		}
	}
}

// begin is the beginning of a connection.
func (s *subscriber) begin() *visit {
	s.mu.Lock()
	defer s.mu.Unlock()

	if s.user == "" && s.resume == "" {
		s.person = nil
	}
	v := s.run.crowd.come(s.person)
	s.view = view{after: v.dialled}
	s.clientID = ""
	return v
}

// setState sets the next state on the present connection.
func (s *subscriber) setState() error {
	s.mu.Lock()
	p, clientID := s.person, s.clientID
	s.mu.Unlock()
	if p == nil || clientID == "" {
		return errNotConnected
	}
	n := s.run.crowd.setsState(p)
	return s.run.post("/api/topics/presence", s.token, fmt.Sprintf(`{"topic":%q,"clientId":%q,"state":{"n":%d}}`, s.topic, clientID, n), nil)
}

var errNotConnected = errors.New("there is no connection")

// ready says who it is.
func (s *subscriber) ready(v *visit, member string) {
	t := s.run.truth
	s.mu.Lock()
	defer s.mu.Unlock()

	switch {
	case s.topic == untracked:
		if member != "" {
			t.fault("%s of %s is told that it is %s", s.name(), s.topic, member)
		}
		return
	case s.person != nil && s.person.id != member || member == "":
		t.fault("%s of %s is told that it is %q", s.name(), s.topic, member)
		return
	case s.person == nil:
		s.person = s.run.crowd.person(s.topic, member, true, s.resume != "")
		s.run.openToAll(s.person)
	}
	s.run.crowd.enter(v, s.person)
}

// receive reports whether the connection is of no use any more.
func (s *subscriber) receive(v *visit, e envelope) (stop bool) {
	t := s.run.truth

	switch e.Type {
	case "message":
		s.message(e)
	case "ready":
		resumed := e.Resumed != nil && *e.Resumed
		s.begun = fmt.Sprintf("the connection resumed: %v, at %s, %s; %s", resumed, e.ID, time.Now().Format("05.000"), t.story(s.started))
		forgotten := s.resume != "" && !s.started.IsZero() && !resumed
		if forgotten && !t.killedAfter(s.started) {
			t.fault("%s of %s was not resumed (%s)", s.name(), s.topic, t.story(s.started))
		}
		if s.resume == "" || forgotten {
			s.last = 0 // the connection is a beginning
		}
		if s.started.IsZero() {
			s.started = time.Now()
		}
		s.ready(v, e.Member)
	case "presence", "join", "update", "leave":
		s.presence(e)
	case "presence_denied", "presence_revoked":
		t.refused.Add(1)
		if code := e.Code; (code == "presence_disabled") != (s.topic == untracked) {
			t.fault("%s of %s is not shown who is there: %s", s.name(), s.topic, code)
		}
		if s.sees {
			time.Sleep(30 * time.Millisecond)
			return true // come again
		}
	case "gap":
		t.gaps.Add(1)
		s.gap = true
		s.evicted = s.evicted || e.Reason == "evicted" || s.run.evicting.Load()
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

	// what comes after it on this connection was sent after it
	s.mu.Lock()
	if begun := t.begun(s.topic, n); begun.After(s.view.after) {
		s.view.after = begun
	}
	s.mu.Unlock()

	if id, known := s.ids[n]; known {
		if id != e.ID {
			t.fault("%s of %s got message %d as %s and as %s", s.name(), s.topic, n, id, e.ID)
		}
		if s.resume == "" && s.replay == 0 {
			t.fault("%s of %s got message %d twice", s.name(), s.topic, n)
		}
		t.repeated.Add(1)
		return
	}
	// a kill may take it back to where it stood before the first one
	before := n < s.first && t.killed()
	if n < s.last && !s.skipped[n] && !before {
		t.fault("%s of %s got message %d after %d", s.name(), s.topic, n, s.last)
	}

	if s.first == 0 {
		s.first = n
	}
	s.mu.Lock()
	s.ids[n] = e.ID
	s.mu.Unlock()
	if s.person != nil {
		if lost := s.run.crowd.lost(&s.person.member, t.begun(s.topic, n)); lost > 0 {
			t.fault("%s of %s got message %d, which was published %v after it lost access", s.name(), s.topic, n, lost)
		}
	}

	if s.last > 0 {
		lost := t.between(s.topic, s.last, n)
		if !s.gap {
			for _, lost := range lost {
				t.fault("%s of %s got message %d after %d and never %d, without a word (%s; %s after %s)", s.name(), s.topic, n, s.last, lost, s.begun, e.ID, s.ids[s.last])
			}
		} else if !s.evicted && strings.HasPrefix(s.topic, "many/") {
			// only kills are a reason for a gap there
			for _, lost := range t.outliveKills(s.topic, lost) {
				t.fault("%s of %s got message %d after %d and never %d, which was answered long before the kill", s.name(), s.topic, n, s.last, lost)
			}
		}
	}
	if s.last > 0 {
		for missed := s.last + 1; missed < n; missed++ {
			// after a kill the server may have it again, while newer ones are lost
			s.skipped[missed] = true
		}
	}
	s.gap, s.evicted = false, false
	s.last = max(s.last, n)
}

// checkGap looks whether it is one.
func (s *subscriber) checkGap(e envelope) {
	t := s.run.truth
	switch e.Reason {
	case "epoch":
		if !t.killed() {
			t.fault("%s of %s was told of an unclean stop, and there was none", s.name(), s.topic)
		}
	case "evicted":
		if !strings.HasPrefix(s.topic, "evict/") && !t.killed() && !s.run.evicting.Load() {
			t.fault("%s of %s was told of an eviction", s.name(), s.topic)
		}
	case "repeated":
		// connections are short here: it must say that nothing is certain
		if e.Certain == nil || *e.Certain || e.Count == nil || *e.Count < 1 {
			t.fault("%s of %s was told that messages are left out: %+v", s.name(), s.topic, e)
		}
	case "expired", "slow":
		if strings.HasPrefix(s.topic, "many/") {
			t.fault("%s of %s was told that messages had expired: %+v", s.name(), s.topic, e)
		}
		if e.Count == nil || *e.Count < 1 {
			t.fault("%s of %s was told of a gap of nothing: %+v", s.name(), s.topic, e)
		}
	default:
		t.fault("%s of %s was told of a gap by %q", s.name(), s.topic, e.Reason)
	}
}

func (s *subscriber) has(n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()

	_, ok := s.ids[n]
	return ok
}
