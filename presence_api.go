package topics

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	validation "github.com/pocketbase/ozzo-validation/v4"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/subscriptions"
)

// statesOverhead is the room in a request's body for what is not state.
const statesOverhead = 2 << 10

// presenceAnswer is who is on a topic, as HTTP clients see it. Members is
// missing where watchers, too, get the number only: see presence.counts.
type presenceAnswer struct {
	Topic   string            `json:"topic"`
	Count   int               `json:"count"`
	Members []json.RawMessage `json:"members,omitzero"`
}

// handlePresence answers whom presenceRule lets.
func (p *Plugin) handlePresence(e *core.RequestEvent) error {
	topic := e.Request.URL.Query().Get("topic")
	if topic == "" {
		return e.BadRequestError("The topic is missing.", validation.Errors{
			"topic": validation.NewError(codeTopicRequired, "Must be the topic's name."),
		})
	}
	if d := p.decidePresence(e, topic, noOptions()); d != nil {
		p.logDenial(e.App, topic, e.Auth, actionPresence, d)
		return e.Error(d.status(), d.message, validation.Errors{"topic": d.fieldError()})
	}

	answer := presenceAnswer{Topic: topic}
	err := p.withMembers(e.App, topic, func(tm *topicMembers) {
		answer.Count = tm.count()
		if tm != nil && p.presence.counts(tm) {
			return
		}
		answer.Members = make([]json.RawMessage, 0, answer.Count)
		for _, m := range tm.sorted() {
			answer.Members = append(answer.Members, m.json)
		}
	})
	if err != nil {
		return e.InternalServerError("Failed to read the members.", err)
	}
	return writeLine(e, answer)
}

// decidePresence is what somebody would meet who asks for the members. Whether
// there are any to see is only for those who may.
func (p *Plugin) decidePresence(e *core.RequestEvent, topic string, options subscriptions.SubscriptionOptions) *denial {
	if reservedTopic(e.App, topic) {
		return denyReserved()
	}
	if d := p.decideAs(e.App, credentialsOf(e.Auth, e.Request), actionPresence, topic, realtimeInfoOf(options)); d != nil {
		return d
	}
	d, err := p.rules.find(e.App, topic)
	if err != nil {
		return denyRuleError(err)
	}
	if d == nil || !d.tracks {
		return denyNoPresence()
	}
	return nil
}

// stateChange is the body of a request to set a state.
type stateChange struct {
	topic    string
	clientID string
	state    []byte
}

// handleState sets what a connection shows as a member.
func (p *Plugin) handleState(e *core.RequestEvent) error {
	change, err := readStateChange(e)
	if err != nil {
		return err
	}
	signedIn := e.Auth
	if _, err := refreshAuth(e); err != nil {
		return err
	}

	found, err := e.App.SubscriptionsBroker().ClientById(change.clientID)
	if err != nil {
		return e.NotFoundError("Missing or invalid client id.", validation.Errors{
			"clientId": validation.NewError(codeClientInvalid, "Must be the id of an open realtime connection."),
		})
	}
	if fault := clientFault(e, found, signedIn); fault != nil {
		return e.ForbiddenError("The request may not set the state of this connection.", validation.Errors{"clientId": fault})
	}

	c := ownClient(found)
	if c == nil || !p.hub.setState(c, change.topic, change.state) {
		return e.BadRequestError("The connection is no member of the topic.", validation.Errors{
			"topic": validation.NewError(codeNoMember, "Must be a topic that the connection has subscribed to, and whose rule tracks members."),
		})
	}
	return e.NoContent(http.StatusNoContent)
}

// clientFault says why a request does not count as the client's. It guards a
// client as core guards its subscriptions. signedIn is the account of the
// request's token, e.Auth the same as it is now.
func clientFault(e *core.RequestEvent, c subscriptions.Client, signedIn *core.Record) validation.Error {
	ip, _ := c.Get(apis.RealtimeClientIPKey).(string)
	auth, _ := c.Get(apis.RealtimeClientAuthKey).(*core.Record)

	switch {
	case auth == nil && signedIn != nil && e.Auth != nil:
		return validation.NewError(codeSignedOut, "The connection has no account: it has not subscribed with this sign-in. Subscribe first, then set the state.")
	case !sameAuth(auth, signedIn) || !sameAuth(auth, e.Auth):
		return validation.NewError(codeClientInvalid, "Must be the id of a connection of the same account.")
	case ip != "" && ip != e.RealIP():
		return otherAddressFault()
	}
	return nil
}

func otherAddressFault() validation.Error {
	return validation.NewError(codeOtherAddress, "The connection was opened from another address than this request. Connect again; if that does not help, let the client use one of its addresses only, and set the trusted proxy headers where there is a proxy.")
}

func sameAuth(a, b *core.Record) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Id == b.Id && a.Collection().Id == b.Collection().Id
}

func readStateChange(e *core.RequestEvent) (c stateChange, err error) {
	raw, err := io.ReadAll(e.Request.Body)
	if err != nil {
		return c, err // of the body limit
	}
	fields, err := readObject(raw)
	if err != nil {
		return c, e.BadRequestError("The body must be a JSON object.", validation.Errors{
			"body": validation.NewError(codeBodyInvalid, "Must be a JSON object with topic, clientId and state."),
		})
	}

	faults := validation.Errors{}
	if json.Unmarshal(fields["topic"], &c.topic) != nil || c.topic == "" {
		faults["topic"] = validation.NewError(codeTopicRequired, "Must be the topic's name.")
	}
	if json.Unmarshal(fields["clientId"], &c.clientID) != nil || c.clientID == "" {
		faults["clientId"] = validation.NewError(codeClientInvalid, "Must be the id of an open realtime connection.")
	}
	state, given := fields["state"]
	if !given {
		err = errors.New("is missing")
	} else {
		c.state, err = readState(state)
	}
	switch _, duplicates := duplicateKey(raw); {
	case errors.Is(err, ErrDuplicateKey):
		faults["state"] = duplicateFault()
	case err != nil:
		faults["state"] = validation.NewError(codeStateInvalid, fmt.Sprintf("Must be null or an object of at most %d bytes of JSON.", maxState))
	case duplicates:
		faults["body"] = duplicateFault()
	}
	if len(faults) > 0 {
		return c, e.BadRequestError("Failed to set the state.", faults)
	}
	return c, nil
}

// setState reports false if the client is no member of the topic.
func (h *hub) setState(c *client, topic string, state []byte) bool {
	c.subsMu.Lock()
	defer c.subsMu.Unlock()

	for _, s := range c.subs {
		if s.topic == topic && h.setStateOf(s, state) {
			return true
		}
	}
	return false
}

func (h *hub) setStateOf(s *subscription, state []byte) bool {
	shard := h.shard(s.topic)
	shard.mu.Lock()
	defer shard.mu.Unlock()

	a := s.attendee
	if a == nil {
		return false
	}
	tm := shard.members[s.topic]
	h.presence.setState(a, state)
	tm.refresh(a.member, nil)
	h.presence.changed(shard, tm)
	return true
}
