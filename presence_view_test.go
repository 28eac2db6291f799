package topics_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"sort"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/tests"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

// shown is a member as clients see it.
type shown struct {
	ID          string         `json:"id"`
	Collection  string         `json:"collection"`
	Record      map[string]any `json:"record"`
	State       map[string]any `json:"state"`
	Since       string         `json:"since"`
	Connections int            `json:"connections"`
}

type presenceEvent struct {
	Type    string   `json:"type"`
	Code    string   `json:"code"`
	Member  string   `json:"member"`
	Count   int      `json:"count"`
	Members *[]shown `json:"members"`
}

// view is what a page makes of the presence events it gets.
type view struct {
	c       *stream
	members map[string]shown
	count   int
	counted bool     // there is no list
	types   []string // of all events
	member  string   // its own, from ready
}

func newView(c *stream) *view { return &view{c: c, members: map[string]shown{}} }

func (v *view) apply(e event) string {
	v.c.s.t.Helper()

	var p presenceEvent
	require.NoError(v.c.s.t, json.Unmarshal([]byte(e.data), &p), e.data)
	v.types = append(v.types, p.Type)
	switch p.Type {
	case "ready":
		v.member = p.Member
	case "presence":
		v.members, v.count, v.counted = map[string]shown{}, p.Count, p.Members == nil
		if p.Members != nil {
			for _, m := range *p.Members {
				v.members[m.Collection+m.ID] = m
			}
		}
	case "join", "update", "leave":
		require.NotNil(v.c.s.t, p.Members, e.data)
		for _, m := range *p.Members {
			_, known := v.members[m.Collection+m.ID]
			require.Equal(v.c.s.t, p.Type != "join", known, "%v and then %s", v.types, e.data)
			if p.Type == "leave" {
				delete(v.members, m.Collection+m.ID)
			} else {
				v.members[m.Collection+m.ID] = m
			}
		}
		v.count = p.Count
	}
	if !v.counted {
		require.Len(v.c.s.t, v.members, v.count, "%v", v.types)
	}
	return p.Type
}

// until applies events up to the first of that type.
func (v *view) until(kind string) {
	v.c.s.t.Helper()
	for {
		if v.apply(v.c.next()) == kind {
			return
		}
	}
}

// ids are the members' ids in order.
func (v *view) ids() []string {
	list := []string{}
	for _, m := range v.members {
		list = append(list, m.ID)
	}
	sort.Strings(list)
	return list
}

// nothing says that no more events have come.
func (v *view) nothing() {
	v.c.s.t.Helper()
	require.Empty(v.c.s.t, v.c.drain(), "%v", v.types)
}

func sorted(ids ...string) []string {
	slices.Sort(ids)
	return ids
}

func watching(topic string) string { return key(topic, map[string]any{"presence": true}) }

// watch subscribes with the presence option and reads the snapshot.
func (s *server) watch(token, k string) *view {
	s.t.Helper()
	c := s.connect()
	c.mustSubscribe(token, k)
	v := newView(c)
	v.until("presence")
	return v
}

const shortGrace = 300 * time.Millisecond

func newPresenceApp(t testing.TB, config topics.Config) (*tests.TestApp, *server) {
	t.Helper()
	app := newApp(t, config)
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "room/{room}", "subscribeRule": "", "presenceRule": "", "presence": true})
	return app, s
}

// presence asks the endpoint. The answer is empty if that refuses.
func (s *server) presence(token, topic string) (answer presenceAnswer, r reply) {
	s.t.Helper()
	r = s.request(http.MethodGet, "/api/topics/presence?topic="+url.QueryEscape(topic), token, "")
	if r.status == http.StatusOK {
		require.NoError(s.t, json.Unmarshal([]byte(r.body), &answer), r.body)
	}
	return answer, r
}

type presenceAnswer struct {
	Count   int     `json:"count"`
	Members []shown `json:"members"`
}

func (s *server) setState(token string, c *stream, topic, state string) reply {
	s.t.Helper()
	return s.request(http.MethodPost, "/api/topics/presence", token,
		fmt.Sprintf(`{"topic":%q,"clientId":%q,"state":%s}`, topic, c.id, state))
}
