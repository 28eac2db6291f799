package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"
)

// person is an honest account in a room. It subscribes to the room with resume,
// and to the topics that everybody shares.
type person struct {
	*caller
	truth *truth
	user  string
	room  string // a topic
	more  []string
	timed bool // its deliveries are samples
	exact bool // it says what it has when it comes back

	mu      sync.Mutex
	ready   time.Time      // when the room's subscription first began
	seen    map[int]string // the room's messages, by number
	last    string         // the newest id
	visited int
}

// event is what a subscriber receives with the envelope.
type event struct {
	Type    string  `json:"type"`
	Topic   string  `json:"topic"`
	ID      string  `json:"id"`
	Data    message `json:"data"`
	Code    string  `json:"code"`
	Reason  string  `json:"reason"`
	Resumed *bool   `json:"resumed"`
	Certain *bool   `json:"certain"`
}

// visit is one connection. It ends with the context, or with an error.
func (p *person) visit(ctx context.Context) error {
	err := p.connection(ctx)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (p *person) connection(ctx context.Context) error {
	s, err := p.connect()
	if err != nil {
		return fmt.Errorf("cannot connect: %w", err)
	}
	defer s.close()
	stop := context.AfterFunc(ctx, s.close)
	defer stop()

	keys := []string{key(p.room, map[string]any{"envelope": true, "resume": "page of " + p.user})}
	for _, topic := range p.more {
		keys = append(keys, key(topic, map[string]any{"envelope": true}))
	}
	body := map[string]any{"clientId": s.clientID, "subscriptions": keys}
	if p.exact {
		p.mu.Lock()
		body["positions"] = map[string]string{keys[0]: p.last}
		p.mu.Unlock()
	}
	if err := p.post("/api/realtime", body, nil); err != nil {
		return fmt.Errorf("cannot subscribe: %w", err)
	}
	for {
		_, data, err := s.next()
		if err != nil {
			return fmt.Errorf("lost its connection: %w", err)
		}
		var e event
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			return fmt.Errorf("received %.100q: %w", data, err)
		}
		p.receive(e)
	}
}

func (p *person) receive(e event) {
	fault := func(format string, args ...any) {
		p.truth.fault("%s %s", p.user, fmt.Sprintf(format, args...))
	}
	switch {
	case e.Type == "message" && e.Topic == p.room:
		p.keep(e, fault)
	case e.Type == "message" && p.timed:
		// the text says whether it is from an honest sender: open/ is open to all
		if kind, _, _ := strings.Cut(e.Topic, "/"); e.Data.Text == honestText {
			p.truth.arrive(e.Topic, kind, e.Data.N)
		}
	case e.Type == "ready" && e.Topic == p.room:
		p.mu.Lock()
		defer p.mu.Unlock()
		p.visited++
		if e.ID != "" {
			p.last = e.ID
		}
		if p.ready.IsZero() {
			p.ready = time.Now()
		} else if e.Resumed == nil || !*e.Resumed {
			fault("was not resumed in %s on connection %d", e.Topic, p.visited)
		}
	case e.Type == "gap" && e.Reason == "repeated" && !p.exact && e.Certain != nil && !*e.Certain:
		// it may be none: what is missing shows at the end
	case e.Type == "gap":
		fault("was told of a gap in %s: %s", e.Topic, e.Reason)
	case e.Type == "denied" || e.Type == "revoked":
		fault("was %s from %s: %s", e.Type, e.Topic, e.Code)
	}
}

// keep notes a message of the room.
func (p *person) keep(e event, fault func(string, ...any)) {
	p.mu.Lock()
	id, again := p.seen[e.Data.N]
	p.seen[e.Data.N] = e.ID
	p.last = e.ID
	p.mu.Unlock()

	kind := ""
	if p.timed && !again {
		kind = "room"
	}
	of, known := p.truth.arrive(p.room, kind, e.Data.N)
	switch {
	case !known:
		fault("received message %d of %s, which nobody has sent", e.Data.N, p.room)
	case again && p.exact:
		fault("received message %d of %s again, which it has said that it has", e.Data.N, p.room)
	case again && id != e.ID:
		fault("received message %d of %s as %s and as %s", e.Data.N, p.room, id, e.ID)
	case of.id != "" && of.id != e.ID:
		fault("received message %d of %s as %s, but it is %s", e.Data.N, p.room, e.ID, of.id)
	}
}

// missing returns how many answered messages of the room are missing that were
// sent since the subscription began, the first of them, and how many there are.
func (p *person) missing() (missing, first, all int) {
	messages := p.truth.messages(p.room)
	p.mu.Lock()
	defer p.mu.Unlock()

	for n, m := range messages {
		if p.ready.IsZero() || m.id == "" || !m.begun.After(p.ready) {
			continue
		}
		all++
		if _, seen := p.seen[n]; !seen {
			if missing == 0 {
				first = n
			}
			missing++
		}
	}
	return missing, first, all
}

// stay is connected all the time.
func (p *person) stay(ctx context.Context) {
	for ctx.Err() == nil {
		if err := p.visit(ctx); err != nil {
			p.truth.fault("%s %v", p.user, err)
			pause(ctx, 200*time.Millisecond)
		}
	}
}

// comeAndGo reconnects every second until calm is done, and then stays.
func (p *person) comeAndGo(ctx, calm context.Context) {
	for calm.Err() == nil && ctx.Err() == nil {
		visit, cancel := context.WithTimeout(calm, time.Second)
		err := p.visit(visit)
		cancel()
		if err != nil {
			p.truth.fault("%s %v", p.user, err)
		}
		pause(ctx, 200*time.Millisecond)
	}
	p.stay(ctx)
}

// beAway leaves when the attack begins, and comes back when it is over.
func (p *person) beAway(ctx, quiet, calm context.Context) {
	if err := p.visit(quiet); err != nil {
		p.truth.fault("%s %v", p.user, err)
	}
	select {
	case <-calm.Done():
		p.stay(ctx)
	case <-ctx.Done():
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
