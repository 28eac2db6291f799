package topics

import (
	"encoding/json"

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
		// Go code registered this client; it is told each time
		allowed, denied := p.authorise(e)
		e.Subscriptions = allowed
		if err := e.Next(); err != nil {
			return err
		}
		for _, d := range denied {
			if !injectsSSE(d.key) {
				p.foreign.send(e.Client, d.notice())
			}
		}
		return nil
	}

	if err := c.takeTurn(e.Request.Context()); err != nil {
		return err
	}
	defer c.endTurn()

	allowed, denied := p.authorise(e)
	e.Subscriptions = allowed
	if err := c.replaceDuring(e.Next); err != nil {
		return err
	}
	c.tell(denied)

	return nil
}

// deniedKey is a subscription key that was refused.
type deniedKey struct {
	key    string
	topic  string
	denial *denial
}

// authorise splits the keys of a request.
func (p *Plugin) authorise(e *core.RealtimeSubscribeRequestEvent) (allowed []string, denied []deniedKey) {
	options := parseKeys(e.Subscriptions)

	allowed = make([]string, 0, len(options))
	seen := make(map[string]struct{}, len(options))

	for _, key := range e.Subscriptions {
		if _, repeated := seen[key]; repeated || key == "" {
			continue
		}
		seen[key] = struct{}{}

		d := p.decideKey(e.App, key, options[key], e.Auth)
		if d == nil {
			allowed = append(allowed, key)
			continue
		}
		denied = append(denied, deniedKey{key: key, topic: topicOf(key), denial: d})
		p.logDenial(e.App, topicOf(key), e.Auth, actionSubscribe, d)
	}

	return allowed, denied
}

// decideKey answers nil if somebody with that auth may subscribe to the key.
func (p *Plugin) decideKey(app core.App, key string, options subscriptions.SubscriptionOptions, auth *core.Record) *denial {
	if injectsSSE(key) {
		return denyMalformed()
	}

	topic := topicOf(key)
	if reservedTopic(app, topic) {
		return nil
	}
	if p.config.AllowUnknown && !validTopic(topic) {
		return nil // no rule can match it
	}

	// what core itself evaluates the rules of record subscriptions with
	return p.decide(app, actionSubscribe, topic, &core.RequestInfo{
		Context: core.RequestInfoContextRealtime,
		Method:  "GET",
		Query:   options.Query,
		Headers: options.Headers,
		Body:    map[string]any{},
		Auth:    auth,
	})
}

// control is what a client receives from the plugin itself.
type control struct {
	Type    string `json:"type"`
	Topic   string `json:"topic"`
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (d deniedKey) notice() subscriptions.Message {
	data, err := json.Marshal(map[string]control{
		controlKey: {Type: "denied", Topic: d.topic, Code: d.denial.code, Message: d.denial.message},
	})
	if err != nil {
		panic(err) // four strings always marshal
	}
	return subscriptions.Message{Name: d.key, Data: data}
}

// tell sends the notices that the client has not had yet. A key that is gone
// from the request, or allowed by now, starts anew. The caller has the turn.
func (c *client) tell(denied []deniedKey) {
	told := make(map[string]struct{}, len(denied))
	for _, d := range denied {
		told[d.key] = struct{}{}
		if _, before := c.told[d.key]; !before && !injectsSSE(d.key) {
			c.Send(d.notice())
		}
	}
	c.told = told
}
