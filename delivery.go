package topics

import (
	"fmt"
)

// publish sends a message to every subscriber of this process, and returns its
// id if the topic keeps a history. After an error nothing was sent.
func (p *Plugin) publish(m Message) (id string, err error) {
	if !p.publishing.enter() {
		return "", ErrClosed
	}
	defer p.publishing.leave()

	if failed := p.guard.run("publishing", func() { id, err = p.deliver(m) }); failed != nil {
		if p.closed.Load() {
			return "", ErrClosed // it has gone on in an app that has ended
		}
		return "", failed
	}
	return id, err
}

// deliver decides who still may receive the message, and hands it out. No lock
// is held while it asks the database or the app's code.
func (p *Plugin) deliver(m Message) (id string, err error) {
	// A few stale grants are decided here, so that a subscriber has the message
	// exactly if the rule lets it have it now. Many would keep the publisher and
	// the others waiting: their messages are held back and follow.
	for _, g := range p.hub.stale(m.Topic) {
		p.grants.decideAgain(g)
	}

	r, err := p.retentionOf(m.Topic)
	if err != nil {
		// it could not be said whether the message is to be kept
		return "", fmt.Errorf("%w: %w", ErrUnavailable, err)
	}

	id, slow, err := p.handOut(m, r)
	if err != nil {
		return "", err
	}
	for _, c := range slow {
		_ = p.guard.run("closing a slow client", c.closeSlow) // the message was sent
	}
	if r.keeps() {
		p.history.evict()
	}
	return id, nil
}

// handOut is the part of a delivery that the histories are not written without
// when the app terminates. It waits for nobody.
func (p *Plugin) handOut(m Message, r retention) (id string, slow []*client, err error) {
	if !p.delivering.enter() {
		return "", nil, ErrClosed // the app has begun to terminate meanwhile
	}
	defer p.delivering.leave()

	p.counters.published.Add(1)
	return p.hub.publish(m, p.foreign, r)
}
