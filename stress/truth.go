package main

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// truth is what has really happened.
type truth struct {
	mu     sync.Mutex
	topics map[string]*topicTruth
	kills  []kill
	faults []string

	published, delivered, repeated, gaps, cuts, stalls, revoked, recovered, restarts atomic.Int64

	// events about members, and how often watchers were refused
	presence, refused atomic.Int64
}

// kill is one of the server's.
type kill struct {
	at    time.Time
	loses time.Duration // what was answered within this time before it
}

type topicTruth struct {
	// of each message: when its publish began and was answered, or zero
	begun    []time.Time
	answered []time.Time
}

func newTruth() *truth { return &truth{topics: map[string]*topicTruth{}} }

// begin returns the number of a topic's next message.
func (t *truth) begin(topic string) int {
	t.mu.Lock()
	defer t.mu.Unlock()

	of := t.topics[topic]
	if of == nil {
		of = &topicTruth{begun: []time.Time{{}}, answered: []time.Time{{}}} // numbers start at 1
		t.topics[topic] = of
	}
	of.begun = append(of.begun, time.Now())
	of.answered = append(of.answered, time.Time{})
	return len(of.begun) - 1
}

func (t *truth) answer(topic string, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()

	t.topics[topic].answered[n] = time.Now()
	t.published.Add(1)
}

// between returns the answered messages with a number between the two.
func (t *truth) between(topic string, after, before int) (list []int) {
	t.mu.Lock()
	defer t.mu.Unlock()

	of := t.topics[topic]
	if of == nil {
		return nil
	}
	for n := after + 1; n < min(before, len(of.answered)); n++ {
		if !of.answered[n].IsZero() {
			list = append(list, n)
		}
	}
	return list
}

func (t *truth) begun(topic string, n int) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()

	if of := t.topics[topic]; of != nil && n < len(of.begun) {
		return of.begun[n]
	}
	return time.Time{}
}

func (t *truth) newest(topic string) int {
	t.mu.Lock()
	defer t.mu.Unlock()

	if of := t.topics[topic]; of != nil {
		return len(of.begun) - 1
	}
	return 0
}

// outliveKills returns those of a topic's answered messages that no kill may
// lose.
func (t *truth) outliveKills(topic string, list []int) (kept []int) {
	t.mu.Lock()
	defer t.mu.Unlock()

	of := t.topics[topic]
	for _, n := range list {
		answered := of.answered[n]
		if !slices.ContainsFunc(t.kills, func(k kill) bool {
			return answered.After(k.at.Add(-k.loses)) && !of.begun[n].After(k.at)
		}) {
			kept = append(kept, n)
		}
	}
	return kept
}

// killedAfter reports whether a kill may have lost a position that was there
// since then.
func (t *truth) killedAfter(since time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()

	return slices.ContainsFunc(t.kills, func(k kill) bool {
		return since.After(k.at.Add(-k.loses)) && since.Before(k.at)
	})
}

// story tells how long ago a subscription began, and the kills were, for faults.
func (t *truth) story(started time.Time) string {
	t.mu.Lock()
	defer t.mu.Unlock()

	ago := []time.Duration{}
	for _, k := range t.kills {
		ago = append(ago, time.Since(k.at).Round(time.Millisecond))
	}
	return fmt.Sprintf("began %v ago, the kills were %v ago", time.Since(started).Round(time.Millisecond), ago)
}

func (t *truth) killed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()

	return len(t.kills) > 0
}

func (t *truth) fault(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()

	if len(t.faults) < 20 {
		t.faults = append(t.faults, fmt.Sprintf(format, args...))
	}
}
