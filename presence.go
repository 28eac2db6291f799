package topics

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/routine"
)

// Member is somebody on a topic: an account with all its connections, or one
// connection of a guest.
type Member struct {
	// ID is the auth record's. A guest's is made up; it is the same over
	// reconnects only if its first subscription has the resume option.
	ID string

	// Collection is the name of the auth record's collection, empty for a guest.
	Collection string

	// Record has those fields of the auth record that the topic's rule shows.
	Record map[string]any

	// State is the newest that one of the connections has set: an object, or
	// nil.
	State json.RawMessage

	// Since is when the first of its connections came.
	Since time.Time

	// Connections are those open now. It is 0 during the grace.
	Connections int
}

// MarshalJSON gives the form that clients see.
func (m Member) MarshalJSON() ([]byte, error) {
	line := memberLine{ID: m.ID, Collection: m.Collection, State: m.State, Since: m.Since, Connections: m.Connections}
	if m.Record != nil {
		raw, err := json.Marshal(m.Record)
		if err != nil {
			return nil, err
		}
		line.Record = raw
	}
	return json.Marshal(line.wire())
}

// maxState is the longest state in bytes of JSON.
const maxState = 2 << 10

// Presence returns the members of a topic, those who came first before the
// others. No rule is asked. It returns, wrapped, [ErrNotRegistered],
// [ErrClosed], [ErrMalformedTopic] or [ErrNoPresence], or an error of the
// database.
func Presence(app core.App, topic string) ([]Member, error) {
	p := From(app)
	if p == nil {
		return nil, ErrNotRegistered
	}
	return p.Presence(app, topic)
}

// PresenceCount returns how many members a topic has, without a look at each of
// them. Its errors are those of [Presence].
func PresenceCount(app core.App, topic string) (int, error) {
	p := From(app)
	if p == nil {
		return 0, ErrNotRegistered
	}
	return p.PresenceCount(app, topic)
}

// Presence is [Presence] on an app whose plugin is at hand.
func (p *Plugin) Presence(app core.App, topic string) (list []Member, err error) {
	var lines []memberLine
	err = p.withMembers(app, topic, func(tm *topicMembers) {
		for _, m := range tm.sorted() {
			lines = append(lines, m.line())
		}
	})
	if err != nil {
		return nil, err
	}
	list = make([]Member, len(lines))
	for i, l := range lines {
		list[i] = l.member()
	}
	return list, nil
}

// PresenceCount is [PresenceCount] on an app whose plugin is at hand.
func (p *Plugin) PresenceCount(app core.App, topic string) (count int, err error) {
	err = p.withMembers(app, topic, func(tm *topicMembers) { count = tm.count() })
	return count, err
}

// withMembers calls read with the topic's lock held.
func (p *Plugin) withMembers(app core.App, topic string, read func(*topicMembers)) error {
	if p.closed.Load() {
		return ErrClosed
	}
	if !validTopic(topic) {
		return fmt.Errorf("%w: %q", ErrMalformedTopic, topic)
	}
	if takenName(topic) {
		return fmt.Errorf("%w: %q", ErrReservedTopic, topic)
	}
	d, err := p.rules.find(p.app(app), topic)
	if err != nil {
		return err
	}
	if d == nil || !d.tracks {
		return fmt.Errorf("%w: %q", ErrNoPresence, topic)
	}
	p.openMembers(p.app(app), topic, false)

	shard := p.hub.shard(topic)
	shard.mu.Lock()
	defer shard.mu.Unlock()

	read(shard.members[topic])
	return nil
}

// identity is which member a subscription is part of, as its decision found it.
type identity struct {
	guest      bool   // its connection is the member
	collection string // id
	name       string // of the collection
	id         string
	record     json.RawMessage // the fields that are shown, or nil
}

// identityOf answers nil where there is no member: the topic tracks none, or it
// is a superuser who is watching. An auth of nil is a guest. After an error the
// member shows no fields.
func identityOf(app core.App, d *definition, auth *core.Record) (*identity, error) {
	switch {
	case d == nil || !d.tracks || auth != nil && auth.IsSuperuser():
		return nil, nil
	case auth == nil:
		return &identity{guest: true}, nil
	}

	id := &identity{collection: auth.Collection().Id, name: auth.Collection().Name, id: auth.Id}
	if len(d.shows) == 0 {
		return id, nil
	}

	// as a guest would see the record, since everybody gets the same
	shown := auth.Fresh()
	event := new(core.RecordEnrichEvent)
	event.App = app
	event.RequestInfo = realtimeInfo(noOptions(), nil)
	event.Record = shown
	enrich := routine.SafeWrap(func() error { // no request stands around it
		return app.OnRecordEnrich().Trigger(event, func(*core.RecordEnrichEvent) error { return nil })
	})
	if err := enrich(); err != nil {
		return id, fmt.Errorf("the handlers of OnRecordEnrich, for a member: %w", err)
	}
	all := shown.PublicExport()
	fields := make(map[string]any, len(d.shows))
	for _, name := range d.shows {
		if v, ok := all[name]; ok {
			fields[name] = v
		}
	}
	raw, err := marshalLine(fields)
	id.record = raw
	return id, err
}

// identify is identityOf for a client that Go code has subscribed.
func (p *Plugin) identify(c *client, topic string) *identity {
	app := p.outerApp()
	d, err := p.rules.find(app, topic)
	if err != nil || d == nil || !d.tracks {
		return nil
	}
	auth, _ := c.Get(apis.RealtimeClientAuthKey).(*core.Record)
	id, err := identityOf(app, d, auth)
	if err != nil {
		p.logPresenceError(app, topic, err)
	}
	return id
}

func (p *Plugin) logPresenceError(app core.App, topic string, err error) {
	if p.logs.allow("presence " + err.Error()) {
		app.Logger().Error("Failed to find out who is on a topic", "topic", topic, "error", err.Error())
	}
}
