package topics

import (
	"context"
	"maps"
	"slices"
	"time"
)

// The part of a client that keeps the hub's index and its grants.

// takeTurn waits for the client's other subscribe requests. Core replaces the
// subscriptions in two steps; two requests at once would mix theirs.
func (c *client) takeTurn(ctx context.Context) error {
	select {
	case c.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *client) endTurn() { <-c.turn }

// admission is what a subscribe request has found out about a key that may be
// subscribed to.
type admission struct {
	grant    *grant
	account  owner // whose limits hold, or empty
	seat     *seat // nil: the key has one already, or needs none
	options  subscribeOptions
	position *position
	keeps    bool    // the topic keeps a history
	claim    *string // the id of the last message that the client has
	identity *identity

	// of the presence option: one of the two
	watch   *grant
	refusal *denial
}

// watches reports whether the members are shown: a rule lets them be, or Go code
// has asked.
func (a *admission) watches() bool {
	return a.watch != nil || a.grant == nil && a.options.presence
}

// replaceDuring runs core's handler of a subscribe request, which removes all
// subscriptions and adds the new ones, by the grants given. The hub sees one
// step, in which a topic that stays is never missed.
func (c *client) replaceDuring(granted map[string]*admission, next func() error) error {
	c.setReplacing(true, granted)
	defer func() {
		c.setReplacing(false, nil)

		// those that core did not come to use
		for _, a := range granted {
			c.grants.release(a.grant)
			a.seat.free()
			if a.watch != nil {
				c.grants.release(a.watch)
			}
		}
	}()

	return next()
}

func (c *client) setReplacing(on bool, granted map[string]*admission) {
	c.subsMu.Lock()
	defer c.subsMu.Unlock()

	c.replacing = on
	c.granted = granted
}

// Subscribe implements [subscriptions.Client.Subscribe].
func (c *client) Subscribe(keys ...string) {
	c.Client.Subscribe(keys...)
	if full := c.subscribe(keys, c.identities(keys)); full {
		c.closeSlow()
	}
}

// subscribe reports whether the client's queue was full.
func (c *client) subscribe(keys []string, identities map[string]*identity) (full bool) {
	c.subsMu.Lock()
	defer c.subsMu.Unlock()

	if c.discarded {
		return false
	}

	want := make(map[string]struct{}, len(keys)+len(c.subs))
	if !c.replacing {
		for key := range c.subs {
			want[key] = struct{}{}
		}
	}
	for _, key := range keys {
		// A request's key without a grant is PocketBase's own, for now: if its
		// collection goes, it must not be a topic that nobody has decided.
		// Nothing is ever published to malformed topics.
		if (!c.replacing || c.granted[key] != nil) && validTopic(topicOf(key)) {
			want[key] = struct{}{}
		}
	}
	return c.index(want, keys, identities)
}

// identities are which members the keys are part of to which Go code has
// subscribed the client. No lock is held.
func (c *client) identities(keys []string) map[string]*identity {
	c.subsMu.Lock()
	replacing := c.replacing
	c.subsMu.Unlock()
	if replacing {
		return nil // a request has found that out
	}

	byKey := make(map[string]*identity, len(keys))
	for _, key := range keys {
		if topic := topicOf(key); validTopic(topic) {
			byKey[key] = c.hub.identify(c, topic)
		}
	}
	return byKey
}

// Unsubscribe implements [subscriptions.Client.Unsubscribe].
func (c *client) Unsubscribe(keys ...string) {
	c.Client.Unsubscribe(keys...)

	c.subsMu.Lock()
	defer c.subsMu.Unlock()

	if len(keys) == 0 {
		if !c.replacing {
			c.index(nil, nil, nil)
		}
		return
	}
	for _, key := range keys {
		if s := c.subs[key]; s != nil {
			c.unindex(s, false)
		}
	}
}

// index makes the client's subscriptions in the hub those of want, without a
// moment in which one that stays is missing. The keys that are new to it, or have
// a new decision, are in order: of a guest's, the first on a topic says which
// member the connection is there, so those that a reconnect brings back are
// before the others. identities are those of Go code's keys. It reports whether
// the client's queue was full. c.subsMu is held.
func (c *client) index(want map[string]struct{}, order []string, identities map[string]*identity) (full bool) {
	var gone []*subscription
	var spare []*seat // of theirs
	for key, s := range c.subs {
		if _, stays := want[key]; !stays {
			gone = append(gone, s)
			if s.taken != nil {
				spare = append(spare, s.taken)
				s.taken = nil
			}
		}
	}
	var signedIn *credentials // of the request
	for _, a := range c.granted {
		signedIn = &a.grant.key.auth
	}

	// what comes before what goes: a key with other options is no new member
	resumes := func(key string) bool { a := c.granted[key]; return a != nil && a.options.resume != "" }
	sorted := make([]string, 0, len(order))
	for _, first := range []bool{true, false} {
		for _, key := range order {
			if _, wanted := want[key]; wanted && resumes(key) == first {
				sorted = append(sorted, key)
			}
		}
	}
	for _, key := range sorted {
		a := c.granted[key]
		delete(c.granted, key)
		if a == nil {
			a = &admission{identity: identities[key]} // Go code has subscribed the client
			a.options, _ = optionsOf(key, parseKeys([]string{key})[key])
		}
		g := a.grant

		s := c.subs[key]
		if s != nil {
			c.hear(s, a)
			full = !c.regrant(s, g) || full
			c.rewatch(s, a)
			spare = c.reseat(s, a, spare)
			continue
		}

		s = &subscription{client: c, topic: topicOf(key), key: key, options: a.options, position: a.position, keeps: a.keeps, claim: a.claim, grant: g}
		if s.position != nil {
			c.resuming.Add(1)
		}
		if c.subs == nil {
			c.subs = map[string]*subscription{}
		}
		c.subs[key] = s
		spare = c.reseat(s, a, spare)
		c.hub.add(s, a)
		if g != nil {
			c.grants.hold(g, s)
		}
		if a.watch != nil {
			c.grants.hold(a.watch, (*watcher)(s))
		}
		if a.refusal != nil {
			c.refuse(s, a.refusal)
		}
		if g != nil && g.identity.Load() != a.identity {
			full = !c.hub.release(s, g) || full // it was decided anew before it had this holder
		}
	}
	for _, seat := range spare {
		seat.free()
	}
	for _, s := range gone {
		c.unindex(s, signedIn != nil && s.grant != nil && !signedIn.sameAccount(s.grant.key.auth))
	}
	return full
}

// hear notes that a request has named a subscription that goes on. After a
// sign-in its position is kept for the account.
func (c *client) hear(s *subscription, a *admission) {
	old := s.position
	if a.position != nil && a.position != old {
		c.hub.reposition(s, a.position)
		if old == nil {
			c.resuming.Add(1)
		} else {
			c.hub.history.positions.drop(old)
		}
		c.hub.history.positions.save(s.position)
	}
	if s.position != nil && c.replacing {
		s.position.hear(s, c.hub.overlap)
	}
}

// unindex ends a subscription. Unless that is now for the member that it is
// part of too, there may be a grace.
func (c *client) unindex(s *subscription, now bool) {
	watch := s.watch
	lingers := c.hub.remove(s, now)
	delete(c.subs, s.key)
	s.taken.free()
	s.taken = nil
	if watch != nil {
		c.grants.drop(watch, (*watcher)(s))
	}
	if s.position != nil {
		c.resuming.Add(-1)
		c.hub.history.positions.release(s.position, s, c.dead.Load())
	}
	if s.grant != nil && !lingers {
		c.grants.drop(s.grant, s)
	}
}

// noteFlushed moves the positions of subscriptions that resume. It runs in the
// connection handler.
func (c *client) noteFlushed(frames []frame) {
	if c.resuming.Load() == 0 {
		return
	}
	now := time.Now()

	c.subsMu.Lock()
	defer c.subsMu.Unlock()

	var last *eventLine // most frames are of one key: its newest is enough
	for i := len(frames) - 1; i >= 0; i-- {
		f := frames[i]
		if f.entry == nil || f.entry.offset == 0 || f.event == last {
			continue
		}
		last = f.event
		if s := c.subs[f.event.key]; s != nil && s.position != nil {
			s.position.flushed(s, mark{epoch: f.entry.epoch, offset: f.entry.offset, at: now}, c.hub.overlap)
		}
	}
}

// refill goes on with the subscriptions that read from a history.
func (c *client) refill() {
	if c.behind.Load() == 0 {
		return
	}

	c.subsMu.Lock()
	subs := slices.Collect(maps.Values(c.subs))
	c.subsMu.Unlock()

	for _, s := range subs {
		c.hub.refill(s)
	}
}

// regrant lets a subscription that stays live by the new decision. Without one
// it is Go code that has subscribed to the key again, which changes nothing. It
// reports false if the client's queue was full.
func (c *client) regrant(s *subscription, g *grant) (ok bool) {
	old := s.grant
	switch {
	case g == nil:
		return true
	case g == old:
		c.grants.release(g) // held already
	default:
		c.hub.setGrant(s, g)
		c.grants.hold(g, s)
		if old != nil {
			c.grants.drop(old, s)
		}
	}
	return c.hub.release(s, g)
}

// reseat gives a subscription the seat that a request has taken for its key, or
// a spare one. It returns the spare ones that are left. It expects c.subsMu to be
// held.
func (c *client) reseat(s *subscription, a *admission, spare []*seat) []*seat {
	if a.grant == nil {
		return spare // it is Go code
	}
	if a.seat != nil || s.taken != nil && s.taken.account != a.account {
		s.taken.free()
		s.taken = a.seat
	}
	if s.taken == nil && a.account != "" {
		s.taken, spare = c.hub.quota.reuse(spare, a.account, c.id)
	}
	return spare
}

// held returns the keys that the client is subscribed to, each with the account
// that has a seat for it.
func (c *client) held() map[string]owner {
	c.subsMu.Lock()
	defer c.subsMu.Unlock()

	keys := make(map[string]owner, len(c.subs))
	for key, s := range c.subs {
		keys[key] = ""
		if s.taken != nil {
			keys[key] = s.taken.account
		}
	}
	return keys
}

// move implements [holder].
func (s *subscription) move(from, to *grant) {
	c := s.client

	c.subsMu.Lock()
	moves := c.subs[s.key] == s && s.grant == from
	if moves {
		c.hub.setGrant(s, to)
		c.grants.hold(to, s)
		c.grants.drop(from, s)
	}
	c.subsMu.Unlock()

	if !moves {
		c.grants.release(to)
	}
}

// subscriptionKey implements [holder].
func (s *subscription) subscriptionKey() string { return s.key }

// guest implements [holder].
func (s *subscription) guest() owner { return s.client.guest }

// resume implements [holder].
func (s *subscription) resume(g *grant) {
	if !s.client.hub.release(s, g) {
		s.client.closeSlow()
	}
}

// revoke implements [holder]: the client loses the subscription and is told.
func (s *subscription) revoke(g *grant, marked uint64, o outcome) bool {
	c := s.client

	select {
	case c.turn <- struct{}{}:
	default:
		return false // it is replacing its subscriptions at this moment
	}
	defer c.endTurn()

	c.subsMu.Lock()
	held := c.subs[s.key] == s && s.grant == g
	counts := g.denies(marked)
	if held && counts {
		c.unindex(s, true)
	}
	c.subsMu.Unlock()

	if !held || !counts {
		return counts
	}

	c.Client.Unsubscribe(s.key)
	if c.told == nil {
		c.told = map[string]struct{}{}
	}
	c.told[s.key] = struct{}{}
	c.tell(o.revocation(s.topic).onKey(s.key, s.options.envelope))

	return true
}
