package topics

// hold keeps a frame until the subscription's grant was decided again, which it
// asks for. It reports false when as much is held for the client, over all its
// subscriptions, as may wait for it. The topic's lock is held.
func (s *subscription) hold(f frame) bool {
	s.client.grants.ask(s.grant)
	if !s.client.reserve(f.size()) {
		return false
	}
	s.held = append(s.held, f)
	s.heldBytes += f.size()
	return true
}

// takeHeld returns what is held, which is held no longer. The topic's lock is
// held.
func (s *subscription) takeHeld() []frame {
	held := s.held
	if held != nil {
		s.client.unreserve(len(held), s.heldBytes)
		s.held, s.heldBytes = nil, 0
	}
	return held
}

// reserve makes room for one frame that is held back.
func (c *client) reserve(size int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()

	if c.heldMessages >= c.limits.messages || c.heldBytes+size > c.limits.bytes {
		return false
	}
	c.heldMessages++
	c.heldBytes += size
	return true
}

func (c *client) unreserve(messages, bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()

	c.heldMessages -= messages
	c.heldBytes -= bytes
}

// askAgain asks for new decisions where something waits for them: s has
// something to be sent. The topic's lock is held.
func (s *subscription) askAgain(now int64) {
	for _, g := range [...]*grant{s.grant, s.watch} {
		if g != nil && !g.fresh(now) {
			s.client.grants.ask(g)
		}
	}
}
