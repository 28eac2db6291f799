package topics

import (
	"time"
)

// occupancy is a topic with subscribers, or whose last one has gone lately.
type occupancy struct {
	topic  string
	ending *deadline // nil while there are subscribers
	over   bool      // its end was taken
}

// occupy notes that a topic has subscribers, if the app wants to know. The
// shard's lock is held.
func (p *presence) occupy(topic string) {
	if !p.calls.wantsTopics.Load() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()

	if o := p.occupied[topic]; o != nil {
		p.cancel(o.ending)
		o.ending, o.over = nil, false
		return
	}
	p.occupied[topic] = &occupancy{topic: topic}
	p.calls.add(call{kind: callOccupied, topic: topic})
}

// vacate notes that a topic has lost its last subscriber. The shard's lock is
// held.
func (p *presence) vacate(topic string) {
	if !p.calls.wantsTopics.Load() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()

	if o := p.occupied[topic]; o != nil {
		o.ending = p.at(time.Now().Add(p.grace))
		o.ending.occupancy = o
		p.wakeUp()
	}
}

// vacated tells the app, unless somebody has come meanwhile.
func (p *presence) vacated(o *occupancy) {
	p.mu.Lock()
	defer p.mu.Unlock()

	if o.over {
		delete(p.occupied, o.topic)
		p.calls.add(call{kind: callVacated, topic: o.topic})
	}
}
