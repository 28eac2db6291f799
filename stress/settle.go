package main

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// settleMembers waits until everybody knows of the same members, which are
// those that there are.
func (r *stress) settleMembers(subscribers []*subscriber) {
	for _, topic := range topicNames {
		if topic == untracked {
			continue
		}
		var of []*subscriber
		for _, s := range subscribers {
			if s.topic == topic {
				of = append(of, s)
			}
		}
		// first all have to be there: a connection that comes sets no state
		r.eventually(func() []string { return r.compare(topic, of, false) })
		for _, s := range of {
			if s.states {
				r.eventually(func() []string {
					if err := s.setState(); err != nil {
						return []string{fmt.Sprintf("%s of %s cannot set its state: %v", s.name(), topic, err)}
					}
					return nil
				})
			}
		}
		r.eventually(func() []string { return r.compare(topic, of, true) })
	}
}

// eventually waits until f finds no faults any more.
func (r *stress) eventually(f func() []string) {
	deadline := time.Now().Add(20 * time.Second)
	for {
		faults := f()
		if len(faults) == 0 {
			return
		}
		if time.Now().After(deadline) {
			for _, fault := range faults {
				r.truth.fault("%s", fault)
			}
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// compare returns how what is known of a topic's members differs.
func (r *stress) compare(topic string, of []*subscriber, states bool) (faults []string) {
	fault := func(format string, args ...any) {
		faults = append(faults, topic+", at the end: "+fmt.Sprintf(format, args...))
	}

	// the truth
	want := map[string]*shown{}
	token := ""
	for _, s := range of {
		if s.user != "" && s.sees {
			token = s.token
		}
		s.mu.Lock()
		p := s.person
		if p == nil {
			s.mu.Unlock()
			fault("%s is not there", s.name())
			return faults
		}
		s.mu.Unlock()
		m := want[p.id]
		if m == nil {
			m = r.crowd.shown(p)
			want[p.id] = m
		}
		m.Connections++
	}

	// what the API answers
	var answer struct {
		Count   int
		Members []shown
	}
	if err := r.request(http.MethodGet, "/api/topics/presence?topic="+url.QueryEscape(topic), token, "", &answer); err != nil {
		fault("%v", err)
		return faults
	}
	listed := map[string]shown{}
	for _, m := range answer.Members {
		listed[m.ID] = m
		known := want[m.ID]
		if known == nil {
			fault("%s should not be there", m.ID)
			continue
		}
		known.Since = m.Since
		if !states {
			known.State = m.State
		}
		if m != *known {
			fault("there is %+v instead of %+v", m, *known)
		}
	}
	if answer.Count != len(want) || len(listed) > 0 && len(listed) != len(want) {
		fault("%d are counted instead of %d, and %d shown", answer.Count, len(want), len(listed))
	}

	// what the watchers know
	for _, s := range of {
		if s.watches && s.sees {
			for _, line := range s.differs(answer.Count, listed) {
				fault("%s %s", s.name(), line)
			}
		}
	}
	return faults
}

// differs says in what a watcher's view is not that of the API.
func (s *subscriber) differs(count int, listed map[string]shown) (lines []string) {
	s.mu.Lock()
	defer s.mu.Unlock()

	v := &s.view
	if !v.begun || v.count != count {
		lines = append(lines, fmt.Sprintf("(connected: %v) counts %d instead of %d", v.begun, v.count, count))
	}
	if v.counted {
		return lines
	}
	for id, m := range listed {
		// how many connections somebody has is no event
		known := v.members[id]
		known.Connections = m.Connections
		if known != m {
			lines = append(lines, fmt.Sprintf("knows %+v instead of %+v", known, m))
		}
	}
	slices.SortFunc(lines, strings.Compare)
	return lines
}
