package main

import (
	"fmt"
	"sync"
	"time"
)

// message is what honest people send.
type message struct {
	N    int    `json:"n"`
	Text string `json:"text"`
}

// truth is what honest people have sent.
type truth struct {
	mu      sync.Mutex
	topics  map[string][]sent
	samples []sample
	faults  []string
	left    int // faults that are not listed
}

// sent is one message of a topic, whose number is its place.
type sent struct {
	due   time.Time // when its turn was: a late request does not hide a delay
	begun time.Time // of the request
	id    string    // "" as long as the request is not answered, and without history
}

// sample is how long a message took to one subscriber.
type sample struct {
	kind string // the first segment of the topic
	due  time.Time
	took time.Duration
}

func newTruth() *truth { return &truth{topics: map[string][]sent{}} }

// begin returns the number of a topic's next message.
func (t *truth) begin(topic string, due time.Time) int {
	t.mu.Lock()
	defer t.mu.Unlock()

	t.topics[topic] = append(t.topics[topic], sent{due: due, begun: time.Now()})
	return len(t.topics[topic]) - 1
}

func (t *truth) answer(topic string, n int, id string) {
	t.mu.Lock()
	defer t.mu.Unlock()

	t.topics[topic][n].id = id
}

// arrive notes that a subscriber has a message, and returns what is known of
// it.
func (t *truth) arrive(topic, kind string, n int) (of sent, known bool) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()

	if n < 0 || n >= len(t.topics[topic]) {
		return sent{}, false
	}
	of = t.topics[topic][n]
	if kind != "" {
		t.samples = append(t.samples, sample{kind: kind, due: of.due, took: now.Sub(of.due)})
	}
	return of, true
}

// messages returns all of a topic.
func (t *truth) messages(topic string) []sent {
	t.mu.Lock()
	defer t.mu.Unlock()

	return append([]sent(nil), t.topics[topic]...)
}

// between returns the samples of messages whose turn was between the two times.
func (t *truth) between(from, to time.Time) map[string][]time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()

	byKind := map[string][]time.Duration{}
	for _, s := range t.samples {
		if !s.due.Before(from) && s.due.Before(to) {
			byKind[s.kind] = append(byKind[s.kind], s.took)
		}
	}
	return byKind
}

const listedFaults = 30

func (t *truth) fault(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()

	if len(t.faults) >= listedFaults {
		t.left++
		return
	}
	t.faults = append(t.faults, fmt.Sprintf(format, args...))
}
