package topics

import (
	"slices"
	"strings"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/subscriptions"
)

// onSubscribe takes the denied keys out of a request before core sees it, and
// tells the client about each of them once.
//
// The request itself never fails because of a denial: the SDK sends all of its
// keys each time, and an error would take every other subscription down.
func (p *Plugin) onSubscribe(e *core.RealtimeSubscribeRequestEvent) error {
	c := ownClient(e.Client)
	if c == nil {
		return p.subscribeForeign(e)
	}

	if err := c.takeTurn(e.Request.Context()); err != nil {
		return err
	}
	defer c.endTurn()

	past := claimsOf(e)
	c.follows(past.previous)
	keys := p.authorise(e, c.held())
	for key, a := range keys.admitted {
		a.claim = past.position(key)
	}
	e.Subscriptions = keys.allowed
	if err := c.replaceDuring(keys.admitted, e.Next); err != nil {
		return err
	}
	c.tellDenied(keys.denied)

	return nil
}

// subscribeForeign is onSubscribe for a client that Go code has registered.
func (p *Plugin) subscribeForeign(e *core.RealtimeSubscribeRequestEvent) error {
	keys := p.authorise(e, p.foreign.held(e.Client.Id()))
	e.Subscriptions = keys.allowed
	for _, a := range keys.admitted {
		if a.watch != nil {
			p.grants.release(a.watch) // such clients are told of no members
		}
	}
	p.foreign.setGrants(e.Client, guestOwner(clientAddress(e.RequestEvent), e.Client.Id()), keys.allowed, keys.admitted)
	if err := e.Next(); err != nil {
		return err
	}
	for _, d := range keys.denied {
		if hears(d.key) {
			p.foreign.send(e.Client, d.notice(false))
		}
	}
	return nil
}

// keys is a request's list, decided.
type keys struct {
	allowed []string
	denied  []deniedKey

	// of the allowed keys that a rule guards
	admitted map[string]*admission
}

// deniedKey is a subscription key that was refused.
type deniedKey struct {
	key    string
	topic  string
	denial *denial
}

// authorise decides the keys of a request. Those that the client holds already
// come first: limits refuse new ones.
func (p *Plugin) authorise(e *core.RealtimeSubscribeRequestEvent, held map[string]owner) keys {
	requested := slices.Concat(e.Subscriptions, longKeys(e.RequestEvent))
	a := authorisation{
		plugin:  p,
		event:   e,
		options: parseKeys(requested),
		auth:    credentialsOf(e.Auth, e.Request),
		who:     subscriberOf(e.RequestEvent),
		account: limitedAccount(e.Auth),
		held:    held,
		places:  places{perTopic: p.config.MaxKeysPerTopic, limit: p.config.MaxSubscriptions, topics: map[string]int{}},

		patience: newDiskWait(e.Request.Context()),
	}
	defer a.patience.end(p.history.disk)

	list := make([]string, 0, len(requested)) // each once
	denials := make(map[string]*denial, len(requested))
	for _, key := range requested {
		if _, repeated := denials[key]; !repeated && key != "" {
			key = strings.Clone(key) // it is kept, and may be part of the request's body
			denials[key] = nil
			list = append(list, key)
		}
	}

	k := keys{allowed: make([]string, 0, len(list)), admitted: map[string]*admission{}}
	a.spare = a.given(denials)
	for _, old := range []bool{true, false} {
		for _, key := range list {
			if _, isHeld := held[key]; isHeld != old {
				continue
			}
			admission, d := a.decide(key)
			if admission != nil {
				k.admitted[key] = admission
			} else if old && !a.needsSeat(key) {
				a.spare++ // the account may not have this one any longer
			}
			denials[key] = d
		}
	}

	logged := map[string]bool{}
	for _, key := range list {
		d := denials[key]
		if d == nil {
			k.allowed = append(k.allowed, key)
			continue
		}
		k.denied = append(k.denied, deniedKey{key: key, topic: topicOf(key), denial: d})
		if d.isLimit() {
			p.counters.subscriptionsRefused.Add(1)
			if logged[d.code] {
				continue
			}
			logged[d.code] = true
		}
		p.logDenial(e.App, topicOf(key), e.Auth, actionSubscribe, d)
	}

	return k
}

// authorisation is one request's.
type authorisation struct {
	plugin  *Plugin
	event   *core.RealtimeSubscribeRequestEvent
	options map[string]subscriptions.SubscriptionOptions
	auth    credentials
	who     owner
	account owner            // whose limits hold, or empty
	held    map[string]owner // by key: the account that has a seat for it
	places  places
	spare   int // seats of the account that this request gives back
	pruned  bool

	patience *diskWait
}

// given returns how many seats of the account are those of keys that the request
// leaves out.
func (a *authorisation) given(requested map[string]*denial) (n int) {
	for key, account := range a.held {
		if _, stays := requested[key]; !stays && account != "" && account == a.account {
			n++
		}
	}
	return n
}

// decide answers with an admission for a key that a rule guards, and with
// neither for one that is PocketBase's.
func (a *authorisation) decide(key string) (*admission, *denial) {
	topic := topicOf(key)
	read, ok := optionsOf(key, a.options[key])
	d, asksRule := a.plugin.decideKey(a.event.App, key)
	switch {
	case d != nil || !asksRule:
		return nil, d
	case !ok:
		return nil, denyOptions()
	}

	// before the rule: a refusal costs no decision
	if d := a.places.full(topic); d != nil {
		return nil, d
	}
	if d := a.full(key); d != nil {
		return nil, d
	}

	app := a.plugin.app(a.event.App)
	g, d := a.plugin.grants.admit(app, actionSubscribe, key, a.options[key], a.auth)
	if d != nil {
		return nil, d
	}
	if d := a.plugin.denyIgnored(app, topic, a.options[key], read.presence); d != nil {
		a.plugin.grants.release(g)
		return nil, d
	}
	seat, d := a.seat(key)
	if d != nil {
		a.plugin.grants.release(g)
		return nil, d
	}
	a.places.take(topic)
	admission := a.admit(app, g, key, read)
	admission.account, admission.seat = a.account, seat
	return admission, nil
}

// needsSeat reports whether the key counts for an account, and is not one of its
// seats already.
func (a *authorisation) needsSeat(key string) bool {
	return a.account != "" && a.held[key] != a.account
}

// full answers with a denial if the account has no seat left for the key.
func (a *authorisation) full(key string) *denial {
	if !a.needsSeat(key) || a.spare > 0 {
		return nil
	}
	d := a.plugin.quota.full(a.account, a.event.Client.Id())
	if d != nil && !a.pruned {
		a.pruned = true
		a.plugin.foreign.prune()
		d = a.plugin.quota.full(a.account, a.event.Client.Id())
	}
	return d
}

func (a *authorisation) seat(key string) (*seat, *denial) {
	if !a.needsSeat(key) {
		return nil, nil
	}
	if a.spare > 0 {
		a.spare--
		return nil, nil
	}
	return a.plugin.quota.take(a.account, a.event.Client.Id())
}

// admit opens what a subscription needs of the disk, and decides whether it sees
// the members.
func (a *authorisation) admit(app core.App, g *grant, key string, read subscribeOptions) *admission {
	p, topic := a.plugin, topicOf(key)

	m := &admission{grant: g, options: read, identity: g.identity.Load()}
	m.position, m.keeps = p.openHistory(a.patience, topic, read, a.auth, a.who)
	if m.identity != nil || read.presence {
		p.openMembers(app, topic, true)
	}
	if !read.presence {
		return m
	}

	m.watch, m.refusal = p.grants.admit(app, actionPresence, key, a.options[key], a.auth)
	if m.refusal != nil {
		p.logDenial(a.event.App, topic, a.event.Auth, actionPresence, m.refusal)
	}
	return m
}

// decideKey decides a key, unless it is for a rule to do that.
func (p *Plugin) decideKey(app core.App, key string) (d *denial, asksRule bool) {
	topic := topicOf(key)

	switch {
	case injectsSSE(key):
		return denyMalformed(), false
	case reservedTopic(app, topic):
		return nil, false
	case takenName(topic):
		return denyTakenName(), false
	case len(key) > maxKey && (validTopic(topic) || p.config.AllowUnknown):
		return denyLongKey(), false
	case validTopic(topic):
		return nil, true
	case p.config.AllowUnknown:
		return nil, false // no rule can match it
	default:
		return denyMalformed(), false
	}
}

// realtimeInfo is what core itself evaluates the rules of record subscriptions
// with.
func realtimeInfo(options subscriptions.SubscriptionOptions, auth *core.Record) *core.RequestInfo {
	return &core.RequestInfo{
		Context: core.RequestInfoContextRealtime,
		Method:  "GET",
		Query:   options.Query,
		Headers: options.Headers,
		Body:    map[string]any{},
		Auth:    auth,
	}
}

func realtimeInfoOf(options subscriptions.SubscriptionOptions) func(*core.Record) *core.RequestInfo {
	return func(auth *core.Record) *core.RequestInfo { return realtimeInfo(options, auth) }
}

func (d deniedKey) notice(enveloped bool) subscriptions.Message {
	return control{Type: "denied", Topic: d.topic, Code: d.denial.code, Message: d.denial.message}.onKey(d.key, enveloped)
}

func (o outcome) revocation(topic string) control {
	return control{Type: "revoked", Topic: topic, Code: codeRevoked, Message: o.reason}
}

// tellDenied sends the notices that the client has not had yet. A key that is gone
// from the request, or allowed by now, starts anew. The caller has the turn.
func (c *client) tellDenied(denied []deniedKey) {
	told := make(map[string]struct{}, len(denied))
	for _, d := range denied {
		told[d.key] = struct{}{}
		if _, before := c.told[d.key]; !before && hears(d.key) {
			c.tell(d.notice(wantsEnvelope(d.key)))
		}
	}
	c.told = told
}
