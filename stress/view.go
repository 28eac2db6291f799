package main

import (
	"fmt"
	"slices"
	"time"
)

// shown is a member in an event or an answer.
type shown struct {
	ID          string `json:"id"`
	Collection  string `json:"collection"`
	Record      record `json:"record"`
	State       state  `json:"state"`
	Since       string `json:"since"`
	Connections int    `json:"connections"`
}

type record struct {
	Name string `json:"name"`
}

type state struct {
	N int `json:"n"`
}

// view is what one connection of a watcher knows of the members.
type view struct {
	begun   bool // a snapshot has come
	counted bool // it has only their number
	count   int
	members map[string]shown
	after   time.Time // events are certainly sent after that
}

// presence checks an event about the members.
func (s *subscriber) presence(e envelope) {
	t := s.run.truth
	t.presence.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()

	v := &s.view
	fault := func(format string, args ...any) {
		t.fault("%s of %s: %s, at %s, sent within %v", s.name(), s.topic, fmt.Sprintf(format, args...), describe(e), time.Since(v.after))
	}
	if !s.watches {
		fault("has not asked who is there")
	}
	if blind := s.run.crowd.lost(&s.person.viewer, v.after); blind > 0 {
		fault("had lost the right to see for %v", blind)
	}
	list := e.Members
	if e.Count == nil {
		fault("there is no count")
		return
	}
	v.count = *e.Count

	switch {
	case e.Type == "presence":
		v.begun, v.counted, v.members = true, list == nil, map[string]shown{}
		if v.counted && v.count <= shownMembers-shownMembers/10 {
			fault("there is no list")
		}
	case !v.begun || v.counted || list == nil:
		fault("does not know of anybody")
		return
	}
	for _, m := range list {
		_, known := v.members[m.ID]
		if known != (e.Type == "update" || e.Type == "leave") {
			fault("%s was known: %v", m.ID, known)
		}
		v.members[m.ID] = m
		s.checkMember(m, e.Type, fault)
	}
	if e.Type == "leave" {
		for _, m := range list {
			delete(v.members, m.ID)
		}
	}
	if !v.counted && len(v.members) != v.count {
		fault("knows of %d", len(v.members))
	}
	s.checkAll(fault)
}

// checkMember looks at one member of an event.
func (s *subscriber) checkMember(m shown, kind string, fault func(string, ...any)) {
	p := s.run.crowd.find(s.topic, m.ID)
	switch {
	case p == nil && m.Collection != "":
		fault("%s is a stranger", m.ID)
	case p == nil: // a guest of whom the program has not heard yet
	case (m.Collection == "") != p.guest:
		fault("%s is of collection %q", m.ID, m.Collection)
	case kind == "leave":
	case m.State.N != 0 && !s.run.crowd.mayHaveSet(p, m.State.N):
		fault("%s has not set state %d", m.ID, m.State.N)
	}
}

// checkAll looks whether those are known who are certainly there, and nobody
// else. Each event leaves the view as the topic was at one moment, apart from
// who comes with an event that follows at once.
func (s *subscriber) checkAll(fault func(string, ...any)) {
	v := &s.view
	certain := 0
	for _, p := range s.run.crowd.people(s.topic) {
		_, known := v.members[p.id]
		if s.run.crowd.isMember(p, v.after) {
			certain++
			if !known && !v.counted {
				fault("%s is there and does not show (%s)", p.id, s.run.crowd.story(p))
			}
		}
		if why := s.run.crowd.isNone(p, v.after); known && why != "" {
			fault("%s %s and shows", p.id, why)
		}
	}
	if v.counted && v.count < certain {
		fault("%d are there", certain)
	}
}

// find returns nil for somebody unknown.
func (c *crowd) find(topic, id string) *person {
	c.mu.Lock()
	defer c.mu.Unlock()

	return c.topics[topic][id]
}

func describe(e envelope) string {
	ids := make([]string, 0, len(e.Members))
	for _, m := range e.Members {
		ids = append(ids, m.ID)
	}
	slices.Sort(ids)
	count := -1
	if e.Count != nil {
		count = *e.Count
	}
	return fmt.Sprintf("%s (count %d) %v", e.Type, count, ids)
}
