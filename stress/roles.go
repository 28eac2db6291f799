package main

import (
	"fmt"
	"math/rand/v2"
	"strconv"
)

const (
	untracked = "many/1" // has no members
	lobby     = "lobby/1"
)

var topicNames = []string{untracked, "many/2", "few/1", "brief/1", lobby}

// subscriber returns the i-th. They are shared out over the topics. On each one
// there are some with and without resume, with several connections, with and
// without the members, with and without the right to see these, and with states.
func (r *stress) subscriber(i int, tokens map[string]string) *subscriber {
	k := i / len(topicNames)
	s := &subscriber{
		run: r, topic: topicNames[i%len(topicNames)],
		ids: map[int]string{}, skipped: map[int]bool{}, random: rand.New(rand.NewPCG(r.seed, uint64(i)+2)),
		watches: k%5%2 == 0, sees: k%8 != 4, states: k%2 == 0,
	}
	if k%3 < 2 {
		s.resume = fmt.Sprint("r", i)
	} else {
		s.replay = i % 5
	}

	account := i
	if k%4 == 3 {
		account -= len(topicNames) // it is another tab of the one before
	}
	switch {
	case s.topic == untracked:
		s.sees = false
	case s.topic == lobby:
		s.sees = true
		if k%3 == 2 || k%2 == 0 {
			return s // a guest
		}
		account = i
	}
	s.user = "user" + strconv.Itoa(account)
	s.token = tokens[s.user]
	s.option = k%6 == 1
	s.person = r.crowd.person(s.topic, s.user, false, true)
	return s
}

// openToAll notes the rights that everybody has.
func (r *stress) openToAll(p *person) {
	granted := func() error { return nil }
	_ = r.crowd.change(p, &p.member, true, granted) // it does not fail
	_ = r.crowd.change(p, &p.viewer, true, granted)
}

// restoreRights gives a subscriber the rights that it has by its role.
func (r *stress) restoreRights(s *subscriber) error {
	switch {
	case s.user == "":
		return nil // when it knows who it is
	case s.topic == lobby:
		r.openToAll(s.person)
		return r.rename(s)
	}
	if err := r.give(s, &s.person.member, "members", true); err != nil {
		return err
	}
	if err := r.rename(s); err != nil {
		return err
	}
	return r.give(s, &s.person.viewer, "viewers", s.sees)
}
