package main

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

const (
	// within is how long it may take until a commit, an arrival or an end shows
	// in the members: the documented second of a revocation, in which a decision
	// (some 10 ms) and a flush (at most 250 ms) have room.
	within = time.Second

	// killLoses is what a kill may lose: members who have come, positions that have
	// begun, and messages that were answered, no longer than that before it. Of
	// messages it may be more if the server has said so by Stats().HistoryLag right
	// before the kill. The flag -loses has another time, for busy machines.
	killLoses = 2 * time.Second

	// noticing is how much earlier than this program the server may have noticed
	// the end of a connection, for example of one that has stopped reading.
	noticing = 2 * time.Second
)

// crowd is who is on the topics, as far as it can be known for certain from
// outside the server.
//
// What happens between a request and its answer is not certain. So each fact has
// the time since when it is certain, which is taken away before the request that
// ends it. An event that was certainly sent after a time is checked against what
// has been certain from that time on until now.
type crowd struct {
	mu     sync.Mutex
	topics map[string]map[string]*person
	era    int // odd while the server is away
	start  time.Time
	killed time.Time
	loses  time.Duration // what a kill may lose
}

// person is an account or a guest on one topic. crowd.mu guards it.
type person struct {
	id      string
	guest   bool
	lasting bool // it can come back

	member right
	viewer right

	// since when it is certainly a member, and when the last of the connections
	// ended that make it one
	here   time.Time
	visits map[*visit]struct{}
	left   time.Time

	// connections that may make it one, and when the last of them ended
	open   int
	closed time.Time

	name   string
	states map[int]bool // that it may have set
	state  int          // the last one, 0 for none

	accident sync.Mutex // not two at once
}

// right is one that is given and taken. At most one of the two is not zero.
type right struct {
	given time.Time // since when it is there for certain
	taken time.Time // since when it is certainly not
}

// visit is one connection of a person.
type visit struct {
	person  *person // nil: a guest who does not know yet who it is
	dialled time.Time
	era     int
	ended   bool
}

func newCrowd(loses time.Duration) *crowd {
	return &crowd{topics: map[string]map[string]*person{}, start: time.Now(), loses: loses}
}

// person returns the one of that id, who is new to the topic at first.
func (c *crowd) person(topic, id string, guest, lasting bool) *person {
	c.mu.Lock()
	defer c.mu.Unlock()

	people := c.topics[topic]
	if people == nil {
		people = map[string]*person{}
		c.topics[topic] = people
	}
	p := people[id]
	if p == nil {
		p = &person{id: id, guest: guest, lasting: lasting, visits: map[*visit]struct{}{}, states: map[int]bool{}}
		people[id] = p
	}
	return p
}

func (c *crowd) people(topic string) []*person {
	c.mu.Lock()
	defer c.mu.Unlock()

	return slices.Collect(maps.Values(c.topics[topic]))
}

// change runs a request that gives or takes a right.
func (c *crowd) change(p *person, of *right, on bool, request func() error) error {
	c.mu.Lock()
	if on {
		of.taken = time.Time{}
	} else {
		of.given = time.Time{}
		if of == &p.member {
			p.here = time.Time{}
			clear(p.visits)
		}
	}
	c.mu.Unlock()

	if err := request(); err != nil {
		return err
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !on:
		of.taken = time.Now()
	case of.given.IsZero():
		of.given = time.Now()
	}
	return nil
}

// come is called before a connection subscribes. p may be nil.
func (c *crowd) come(p *person) *visit {
	c.mu.Lock()
	defer c.mu.Unlock()

	if p != nil {
		p.open++
	}
	return &visit{person: p, dialled: time.Now(), era: c.era}
}

// enter says that the connection is subscribed, as p.
func (c *crowd) enter(v *visit, p *person) {
	c.mu.Lock()
	defer c.mu.Unlock()

	if v.person == nil {
		v.person = p
		p.open++
		if v.ended {
			p.open--
			p.closed = time.Now()
		}
	}
	given := p.member.given
	if v.ended || v.era != c.era || v.era%2 == 1 || given.IsZero() || given.After(v.dialled) {
		return // it may have been thrown out already
	}
	if p.here.IsZero() || !p.within() {
		p.here = time.Now()
	}
	p.visits[v] = struct{}{}
}

// end is called when a connection is cut, and again when it was closed.
func (c *crowd) end(v *visit) {
	c.mu.Lock()
	defer c.mu.Unlock()

	p := v.person
	if p != nil {
		if _, counts := p.visits[v]; counts {
			delete(p.visits, v)
			p.left = time.Now()
		}
		if !v.ended {
			p.open--
		}
		p.closed = time.Now()
	}
	v.ended = true
}

// within reports whether somebody is there, or has certainly some of the grace
// left.
func (p *person) within() bool {
	return len(p.visits) > 0 || time.Since(p.left) < grace-noticing
}

// stop is called before the server stops.
func (c *crowd) stop(clean bool) {
	c.mu.Lock()
	defer c.mu.Unlock()

	fresh := within // who has come a moment ago may not be a member yet
	if !clean {
		fresh += c.loses // nor on the disk
	}
	c.era++
	for _, people := range c.topics {
		for _, p := range people {
			if len(p.visits) > 0 {
				p.left = time.Now()
			}
			if time.Since(p.here) < fresh || !p.within() || !p.lasting {
				p.here = time.Time{}
			}
			clear(p.visits)
		}
	}
}

// halt is called when it has stopped: until then graces may have ended.
func (c *crowd) halt() {
	c.mu.Lock()
	defer c.mu.Unlock()

	for _, people := range c.topics {
		for _, p := range people {
			if !p.within() {
				p.here = time.Time{}
			}
		}
	}
}

// resume is called when the server is back.
func (c *crowd) resume() {
	c.mu.Lock()
	defer c.mu.Unlock()

	c.era++
	c.start = time.Now()
	for _, people := range c.topics {
		for _, p := range people {
			p.left = c.start
		}
	}
}

// story tells what is known of somebody, for faults.
func (c *crowd) story(p *person) string {
	c.mu.Lock()
	defer c.mu.Unlock()

	ago := func(t time.Time) time.Duration { return time.Since(t).Round(time.Millisecond) }
	return fmt.Sprintf("here for %v, %d connections, the last left %v ago, the server started %v ago, the last kill %v ago",
		ago(p.here), len(p.visits), ago(p.left), ago(c.start), ago(c.killed))
}

// isMember reports whether somebody has certainly been a member since then.
func (c *crowd) isMember(p *person, since time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()

	return !p.here.IsZero() && !p.here.Add(within).After(since) && p.within()
}

// isNone reports whether somebody has certainly been no member since then, and
// why.
func (c *crowd) isNone(p *person, since time.Time) (why string) {
	c.mu.Lock()
	defer c.mu.Unlock()

	if lost := p.member.taken; !lost.IsZero() && !lost.Add(within).After(since) {
		return "lost access"
	}
	gone := p.closed
	if c.start.After(gone) {
		gone = c.start // a grace begins with the server
	}
	if p.open == 0 && c.era%2 == 0 && !gone.Add(grace+within).After(since) {
		return "went away"
	}
	return ""
}

// lost is how long before then somebody had certainly lost a right that it has
// not got back by now, or 0.
func (c *crowd) lost(of *right, then time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()

	if of.taken.IsZero() {
		return 0
	}
	return max(0, then.Sub(of.taken))
}

// setsState notes a new state that somebody is about to set.
func (c *crowd) setsState(p *person) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()

	p.state++
	p.states[p.state] = true
	return p.state
}

func (c *crowd) mayHaveSet(p *person, n int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()

	return p.states[n]
}

func (c *crowd) rename(p *person, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()

	p.name = name
}

// shown is how somebody has to be shown, apart from since when and with how many
// connections.
func (c *crowd) shown(p *person) *shown {
	c.mu.Lock()
	defer c.mu.Unlock()

	m := &shown{ID: p.id}
	m.Record.Name, m.State.N = p.name, p.state
	if !p.guest {
		m.Collection = "users"
	}
	return m
}
