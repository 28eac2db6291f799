package topics

import (
	"runtime"
	"sync"
	"time"

	"github.com/pocketbase/pocketbase/core"
)

// commitPatience is how long a message waits for the end of a transaction
// that was before its own. PocketBase tells of the end after the commit, one
// callback after the other, and not at all when the transaction has panicked.
const commitPatience = 5 * time.Second

// commits gives messages that are sent in transactions the order of the
// commits. One transaction writes at a time, so that is the order in which
// they were sent. But the ends are told outside of the transactions, where
// they may overtake each other.
type commits struct {
	mu    sync.Mutex
	lines map[string]*commitLine // by topic
	guard *guard

	// the goroutines that wait for commitPatience, or go on after a transaction
	// whose end is not told
	end     sync.Once
	stop    chan struct{}
	running sync.WaitGroup
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

func newCommits() *commits {
	return &commits{lines: map[string]*commitLine{}, stop: make(chan struct{})}
}

// close ends the waiting. What still arrives is refused.
func (c *commits) close() {
	c.end.Do(func() {
		c.mu.Lock()
		close(c.stop)
		c.mu.Unlock()
	})
	c.running.Wait()
}

// join takes the next place. The transaction, which is open, gives it up if its
// end can be told no more, because of a panic.
func (c *commits) join(topic string, tx *core.TxAppInfo) *place {
	p := c.enqueue(topic)
	if tx != nil {
		runtime.AddCleanup(tx, (*place).abandon, p)
	}
	return p
}

func (c *commits) enqueue(topic string) *place {
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

// abandon leaves, unless that was done, or the place was taken: nobody else has
// it any more. It does not wait, as it runs in the runtime's goroutine.
func (p *place) abandon() {
	c := p.commits

	c.mu.Lock()
	defer c.mu.Unlock()

	if p.gone || p.send != nil {
		return
	}
	p.gone = true
	c.start(func() { c.advance(p.topic) })
}

// start runs f in a goroutine, unless the waiting is over. c.mu is held.
func (c *commits) start(f func()) {
	select {
	case <-c.stop:
	default:
		c.running.Go(func() { _ = c.guard.run("sending after a transaction", f) })
	}
}

// arrive sends when all places before have arrived or are gone, in whichever
// goroutine that happens. It does not wait. Who comes after the others' patience
// is sent at once, though late.
func (p *place) arrive(send func()) {
	if late := p.occupy(send); late {
		send()
		return
	}
	p.commits.advance(p.topic)
}

func (p *place) occupy(send func()) (late bool) {
	c := p.commits

	c.mu.Lock()
	defer c.mu.Unlock()

	if p.gone {
		return true
	}
	p.send = send

	var open []*place
	for _, before := range c.lines[p.topic].places {
		if before == p {
			break
		}
		if before.send == nil && !before.gone {
			open = append(open, before)
		}
	}
	if len(open) > 0 {
		c.start(func() { c.giveUp(p.topic, open) })
	}
	return false
}

// giveUp waits no longer than commitPatience for those that have not arrived.
func (c *commits) giveUp(topic string, places []*place) {
	patience := time.NewTimer(commitPatience)
	defer patience.Stop()
	select {
	case <-patience.C:
	case <-c.stop:
		return
	}

	c.mu.Lock()
	for _, p := range places {
		p.gone = p.gone || p.send == nil
	}
	c.mu.Unlock()

	c.advance(topic)
}

// advance sends from the front of the line.
func (c *commits) advance(topic string) {
	for first := true; ; first = false {
		send := c.next(topic, first)
		if send == nil {
			return
		}
		c.sendOne(topic, send)
	}
}

// sendOne lets the others advance after a panic.
func (c *commits) sendOne(topic string, send func()) {
	sent := false
	defer func() {
		if !sent {
			c.mu.Lock()
			if line := c.lines[topic]; line != nil {
				line.sending = false
			}
			c.mu.Unlock()
		}
	}()
	send()
	sent = true
}

// next takes the first place whose turn it is. It returns nil when there is
// none, or while somebody else is sending.
func (c *commits) next(topic string, first bool) func() {
	c.mu.Lock()
	defer c.mu.Unlock()

	line := c.lines[topic]
	if line == nil || first && line.sending {
		return nil
	}
	for len(line.places) > 0 {
		p := line.places[0]
		if !p.gone && p.send == nil {
			break
		}
		line.places = line.places[1:]
		if !p.gone {
			line.sending = true
			send := p.send
			p.gone, p.send = true, nil
			return send
		}
	}
	line.sending = false
	if len(line.places) == 0 {
		delete(c.lines, topic)
	}
	return nil
}
