package topics

import (
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
	keys := p.authorise(e)
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
	keys := p.authorise(e)
	e.Subscriptions = keys.allowed
	for _, a := range keys.admitted {
		if a.watch != nil {
			p.grants.release(a.watch) // such clients are told of no members
		}
	}
	p.foreign.setGrants(e.Client, keys.allowed, keys.admitted)
	if err := e.Next(); err != nil {
		return err
	}
	for _, d := range keys.denied {
		if !injectsSSE(d.key) {
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

// authorise decides the keys of a request.
func (p *Plugin) authorise(e *core.RealtimeSubscribeRequestEvent) keys {
	options := parseKeys(e.Subscriptions)
	auth := credentialsOf(e.Auth, e.Request)
	who := subscriberOf(e.RequestEvent)
	patience := newDiskWait(e.Request.Context())
	defer patience.end(p.history.disk)

	k := keys{allowed: make([]string, 0, len(options)), admitted: map[string]*admission{}}
	seen := make(map[string]struct{}, len(options))

	for _, key := range e.Subscriptions {
		if _, repeated := seen[key]; repeated || key == "" {
			continue
		}
		seen[key] = struct{}{}
		key = strings.Clone(key) // it is kept, and may be part of the request's body

		read, ok := optionsOf(key, options[key])
		d, asksRule := p.decideKey(e.App, key)
		if asksRule && !ok {
			d, asksRule = denyOptions(), false
		}
		if asksRule {
			var a *admission
			if a, d = p.admit(e, key, options[key], read, auth, who, patience); d == nil {
				k.admitted[key] = a
			}
		}

		if d == nil {
			k.allowed = append(k.allowed, key)
			continue
		}
		k.denied = append(k.denied, deniedKey{key: key, topic: topicOf(key), denial: d})
		p.logDenial(e.App, topicOf(key), e.Auth, actionSubscribe, d)
	}

	return k
}

// admit decides a key by its rules, and opens what it needs of the disk.
func (p *Plugin) admit(e *core.RealtimeSubscribeRequestEvent, key string, options subscriptions.SubscriptionOptions, read subscribeOptions, auth credentials, who owner, patience *diskWait) (*admission, *denial) {
	app, topic := p.app(e.App), topicOf(key)

	g := p.grants.acquire(app, actionSubscribe, key, options, auth)
	if d := p.grants.decideFor(g); d != nil {
		p.grants.release(g)
		return nil, d
	}
	a := &admission{grant: g, options: read, identity: g.identity.Load()}
	a.position, a.keeps = p.openHistory(patience, topic, read, auth, who)
	if a.identity != nil || read.presence {
		p.openMembers(app, topic, true)
	}
	if !read.presence {
		return a, nil
	}

	a.watch = p.grants.acquire(app, actionPresence, key, options, auth)
	if a.refusal = p.grants.decideFor(a.watch); a.refusal != nil {
		p.grants.release(a.watch)
		a.watch = nil
		p.logDenial(e.App, topic, e.Auth, actionPresence, a.refusal)
	}
	return a, nil
}

// decideKey decides a key, unless it is for a rule to do that.
func (p *Plugin) decideKey(app core.App, key string) (d *denial, asksRule bool) {
	topic := topicOf(key)

	switch {
	case injectsSSE(key):
		return denyMalformed(), false
	case reservedTopic(app, topic):
		return nil, false
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
		if _, before := c.told[d.key]; !before && !injectsSSE(d.key) {
			c.tell(d.notice(wantsEnvelope(d.key)))
		}
	}
	c.told = told
}
