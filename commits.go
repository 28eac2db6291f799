package topics

import (
	"sync"
	"time"
)

// commitPatience is how long a message waits for the end of a transaction
// that was before its own. PocketBase tells of the end right after the commit,
// but not at all when the transaction has panicked.
const commitPatience = 5 * time.Second

// commits gives messages that are sent in transactions the order of the
// commits. One transaction writes at a time, so that is the order in which
// they were sent. But the ends are told outside of the transactions, where
// they may overtake each other.
type commits struct {
	mu    sync.Mutex
	lines map[string]*commitLine // by topic
}

type commitLine struct {
	places  []*place
	sending bool
}

// place is a message's place in the line of its topic.
type place struct {
	commits *commits
	topic   string
	send    func() // nil while the transaction is open
	gone    bool
}

func newCommits() *commits { return &commits{lines: map[string]*commitLine{}} }

// join takes the next place. The transaction is open.
func (c *commits) join(topic string) *place {
	c.mu.Lock()
	defer c.mu.Unlock()

	line := c.lines[topic]
	if line == nil {
		line = &commitLine{}
		c.lines[topic] = line
	}
	p := &place{commits: c, topic: topic}
	line.places = append(line.places, p)
	return p
}

// leave gives the place up: the transaction was rolled back.
func (p *place) leave() {
	p.commits.mu.Lock()
	p.gone = true
	p.commits.mu.Unlock()

	p.commits.advance(p.topic)
}

// arrive sends when all places before have arrived or are gone, in whichever
// goroutine that happens. It does not wait.
func (p *place) arrive(send func()) {
	c := p.commits

	c.mu.Lock()
	p.send = send
	line := c.lines[p.topic]
	var open []*place
	for _, before := range line.places {
		if before == p {
			break
		}
		if before.send == nil && !before.gone {
			open = append(open, before)
		}
	}
	c.mu.Unlock()

	if len(open) > 0 {
		time.AfterFunc(commitPatience, func() {
			c.mu.Lock()
			for _, before := range open {
				before.gone = before.gone || before.send == nil
			}
			c.mu.Unlock()
			c.advance(p.topic)
		})
	}
	c.advance(p.topic)
}

// advance sends from the front of the line.
func (c *commits) advance(topic string) {
	c.mu.Lock()
	defer c.mu.Unlock()

	line := c.lines[topic]
	if line == nil || line.sending {
		return
	}
	line.sending = true
	for len(line.places) > 0 && (line.places[0].gone || line.places[0].send != nil) {
		first := line.places[0]
		line.places = line.places[1:]
		if first.gone {
			continue
		}
		c.mu.Unlock()
		first.send()
		c.mu.Lock()
	}
	line.sending = false
	if len(line.places) == 0 {
		delete(c.lines, topic)
	}
}
