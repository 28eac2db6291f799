package topics

import (
	"bytes"
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/pocketbase/pocketbase/tools/types"
)

// topicMembers is who is on one topic, and who watches that. Its shard's lock
// guards it.
type topicMembers struct {
	topic    string
	byKey    map[memberKey]*member
	guests   map[*client]*guestSeat
	watchers map[*subscription]struct{}

	// since the last flush
	changed map[memberKey]memberChange
	flushed time.Time
	queued  bool // a flush is

	size     int      // of the members' JSON
	counting bool     // there are so many that watchers get their number only
	told     int      // their number at the last flush
	snapshot dataLine // nil: not made since the last change
}

type memberKey struct {
	collection string // id, empty for a guest
	id         string
}

// member has at least one attendee.
type member struct {
	key        memberKey
	collection string          // its name
	record     json.RawMessage // the fields that are shown
	state      json.RawMessage // the newest of the attendees
	since      time.Time
	attendees  []*attendee
	lasting    bool // it is looked for after a restart

	json []byte // replaced, never changed
}

// attendee is one connection of a member. After its last subscription to the
// topic it stays for the grace.
type attendee struct {
	presence *presence
	topic    string

	// guarded by the topic's lock
	member        *member // nil when it has left
	client        *client // nil: from before a restart
	subscriptions int
	state         json.RawMessage
	stated        uint64    // when the state was set, in the order of all
	ends          time.Time // zero while there are subscriptions
	grant         *grant    // of the last subscription, which keeps it until it ends
	seat          *guestSeat
	key           string // of that subscription

	ending *deadline // nil unless in its grace; presence.mu guards it
}

func newTopicMembers(topic string) *topicMembers {
	return &topicMembers{
		topic:    topic,
		byKey:    map[memberKey]*member{},
		guests:   map[*client]*guestSeat{},
		watchers: map[*subscription]struct{}{},
		changed:  map[memberKey]memberChange{},
	}
}

func (tm *topicMembers) count() int {
	if tm == nil {
		return 0
	}
	return len(tm.byKey)
}

// sorted returns the members by their coming.
func (tm *topicMembers) sorted() []*member {
	if tm == nil {
		return nil
	}
	return slices.SortedFunc(maps.Values(tm.byKey), compareMembers)
}

func compareMembers(a, b *member) int {
	return cmp.Or(a.since.Compare(b.since), strings.Compare(a.key.collection, b.key.collection), strings.Compare(a.key.id, b.key.id))
}

// memberChange is about a member of whom the watchers knew at the last flush,
// or did not.
type memberChange struct {
	known  bool
	member *member
}

func (tm *topicMembers) mark(m *member, known bool) {
	if c, marked := tm.changed[m.key]; marked {
		known = c.known
	}
	tm.changed[m.key] = memberChange{known, m}
}

// refresh makes the member's JSON anew, and marks it if the watchers have to
// know. (The number of connections is nothing that they are told at once.)
func (tm *topicMembers) refresh(m *member, id *identity) {
	var newest *attendee
	for _, a := range m.attendees {
		if a.state != nil && (newest == nil || a.stated > newest.stated) {
			newest = a
		}
	}
	var state json.RawMessage
	if newest != nil {
		state = newest.state
	}
	same := bytes.Equal(m.state, state)
	m.state = state
	if id != nil {
		same = same && bytes.Equal(m.record, id.record) && m.collection == id.name
		m.record, m.collection = id.record, id.name
	}
	if !same {
		tm.mark(m, true)
	}

	tm.size -= len(m.json)
	m.json = mustMarshal(m.line().wire())
	tm.size += len(m.json)
	tm.snapshot = nil
}

func (tm *topicMembers) remove(a *attendee) {
	m := a.member
	a.member = nil
	tm.rise(a.client, &a.seat)
	m.attendees = slices.DeleteFunc(m.attendees, func(other *attendee) bool { return other == a })
	if len(m.attendees) > 0 {
		tm.refresh(m, nil)
		return
	}
	delete(tm.byKey, m.key)
	tm.mark(m, true)
	tm.size -= len(m.json)
	tm.snapshot = nil
}

// of returns the member's attendee for a connection, or nil.
func (m *member) of(c *client) *attendee {
	for _, a := range m.attendees {
		if a.client == c {
			return a
		}
	}
	return nil
}

func (m *member) connections() (open int) {
	for _, a := range m.attendees {
		if a.ends.IsZero() {
			open++
		}
	}
	return open
}

func (m *member) line() memberLine {
	return memberLine{m.key.id, m.collection, m.record, m.state, m.since, m.connections()}
}

// memberLine is what there is to see of a member.
type memberLine struct {
	ID          string
	Collection  string
	Record      json.RawMessage
	State       json.RawMessage
	Since       time.Time
	Connections int
}

func (l memberLine) member() Member {
	m := Member{ID: l.ID, Collection: l.Collection, State: l.State, Since: l.Since, Connections: l.Connections}
	if l.Record != nil {
		if err := json.Unmarshal(l.Record, &m.Record); err != nil {
			panic(err) // it was marshalled
		}
	}
	return m
}

func (l memberLine) wire() any {
	return struct {
		ID          string          `json:"id"`
		Collection  string          `json:"collection"`
		Record      json.RawMessage `json:"record,omitempty"`
		State       json.RawMessage `json:"state,omitempty"`
		Since       string          `json:"since"`
		Connections int             `json:"connections"`
	}{l.ID, l.Collection, l.Record, l.State, l.Since.UTC().Format(types.DefaultDateLayout), l.Connections}
}

// guestSeat is which member a guest's connection is on a topic. Its first
// subscription decides, for all of them and for as long as there are any, or
// what is left of one in its grace.
type guestSeat struct {
	key     memberKey
	lasting bool // a later connection can have the key too
	holders int
}

// keyFor returns the member that s is part of. The topic's lock is held.
func (p *presence) keyFor(tm *topicMembers, id *identity, s *subscription) memberKey {
	if !id.guest {
		return memberKey{collection: id.collection, id: id.id}
	}
	if s.seat == nil {
		s.seat = tm.guests[s.client]
		if s.seat == nil {
			s.seat = &guestSeat{key: p.guestKey(s), lasting: s.options.resume != ""}
			tm.guests[s.client] = s.seat
		}
		s.seat.holders++
	}
	return s.seat.key
}

// idFor returns the id that the member of s has, or will have. The topic's lock is
// held.
func (p *presence) idFor(shard *hubShard, id *identity, s *subscription) string {
	if !id.guest {
		return id.id
	}
	return p.keyFor(p.members(shard, s.topic), id, s).id
}

// rise gives up a holder's part in the seat of a connection. It may have none.
func (tm *topicMembers) rise(c *client, seat **guestSeat) {
	if *seat == nil {
		return
	}
	(*seat).holders--
	if (*seat).holders == 0 {
		delete(tm.guests, c)
	}
	*seat = nil
}

// guestKey is made of the resume option, or else of the connection. The id must
// not tell that of the connection, with which others could change its
// subscriptions, nor the resume option, which may be easy to guess.
func (p *presence) guestKey(s *subscription) memberKey {
	who := "connection\x00" + s.client.id
	if s.options.resume != "" {
		who = "resume\x00" + s.topic + "\x00" + s.options.resume
	}
	mac := hmac.New(sha256.New, []byte(*p.secret.Load()))
	mac.Write([]byte(who))
	return memberKey{id: hex.EncodeToString(mac.Sum(nil))[:15]} // as long as a record's
}
