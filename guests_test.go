package topics_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

func resuming(topic, id string) string { return key(topic, map[string]any{"resume": id}) }

// manyResumes are keys of one topic with as many resume ids.
func manyResumes(topic string, n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = resuming(topic, fmt.Sprint("id", i))
	}
	return keys
}

// told are the ids of the members that ready has told the connection, without
// repetitions.
func told(t testing.TB, c *stream) []string {
	t.Helper()
	var ids []string
	for _, e := range c.drain() {
		var p presenceEvent
		require.NoError(t, json.Unmarshal([]byte(e.data), &p))
		if p.Type == "ready" && !slices.Contains(ids, p.Member) {
			ids = append(ids, p.Member)
		}
	}
	return ids
}

// onlyGuest returns the id of the only member of a topic.
func onlyGuest(t testing.TB, app core.App, topic string) string {
	t.Helper()
	list, err := topics.Presence(app, topic)
	require.NoError(t, err)
	require.Len(t, list, 1)
	require.Empty(t, list[0].Collection)
	return list[0].ID
}

// However a guest's connection subscribes to a topic, it is one member of it, and
// others go on seeing the list.
func TestAGuestsConnectionIsOneMember(t *testing.T) {
	keys := manyResumes("room/1", 200)
	for name, subscribe := range map[string]func(c *stream){
		"in one request": func(c *stream) { c.mustSubscribe("", keys...) },
		"one key after the other": func(c *stream) {
			for i := range 60 {
				c.mustSubscribe("", keys[:i+1]...)
			}
		},
		"one key instead of the other": func(c *stream) {
			for _, k := range keys[:60] {
				c.mustSubscribe("", k)
			}
		},
		"one key after the other's end": func(c *stream) {
			for _, k := range keys[:60] {
				c.mustSubscribe("", k)
				c.mustSubscribe("")
			}
			c.mustSubscribe("", keys[0])
		},
		"with and without resume": func(c *stream) {
			c.mustSubscribe("", "room/1", watching("room/1"))
			c.mustSubscribe("", append([]string{"room/1", watching("room/1")}, keys...)...)
		},
		"by Go code": func(c *stream) {
			found, err := c.s.app.SubscriptionsBroker().ClientById(c.id)
			require.NoError(c.s.t, err)
			found.Subscribe(keys...)
			found.Subscribe("room/1")
		},
	} {
		t.Run(name, func(t *testing.T) {
			app, s := newPresenceApp(t, topics.Config{
				PresenceSnapshot: 5, PresenceGrace: time.Minute,
				MaxKeysPerTopic: 1000, QueueMessages: 1 << 20, QueueBytes: 1 << 30,
			})
			ann, token := newUser(t, app, "ann")
			c := s.connect()
			subscribe(c)
			guest := onlyGuest(t, app, "room/1")
			require.Equal(t, []string{guest}, told(t, c))

			v := s.watch(token, watching("room/1"))
			require.False(t, v.counted)
			require.Equal(t, sorted(ann.Id, guest), v.ids())
			require.Equal(t, 1, v.members[guest].Connections)

			// a state is the member's, whichever key is there
			require.Equal(t, 204, s.setState("", c, "room/1", `{"typing":true}`).status)
			v.until("update")
			require.Equal(t, map[string]any{"typing": true}, v.members[guest].State)

			// who signs in is only the account
			bob, bobToken := newUser(t, app, "bob")
			c.mustSubscribe(bobToken, append([]string{"room/1"}, keys...)...)
			for !slices.Equal(v.ids(), sorted(ann.Id, bob.Id)) {
				v.apply(v.c.next())
			}
		})
	}
}

// The first key says which member it is: the same list makes the same one, after
// a reconnect and after a restart.
func TestAGuestIsTheSameMemberAfterAReconnect(t *testing.T) {
	config := topics.Config{PresenceGrace: time.Minute}
	app, s := newPresenceApp(t, config)
	keys := []string{resuming("room/1", "b"), resuming("room/1", "a"), "room/1", resuming("room/1", "c")}

	c := s.connect()
	c.mustSubscribe("", keys[0]) // as a page does it that comes to need more
	c.mustSubscribe("", keys...)
	guest := onlyGuest(t, app, "room/1")
	for i := range 20 {
		c.disconnect()
		c = s.connect()
		c.mustSubscribe("", append([]string{"room/1"}, keys[:1+i%len(keys)]...)...)
		require.Equal(t, []string{guest}, told(t, c), "resume counts before its absence")
	}
	require.Equal(t, guest, onlyGuest(t, app, "room/1"))

	topics.SettleHistory(app)
	app, s = restart(t, app, config, false)
	require.Equal(t, guest, onlyGuest(t, app, "room/1"))
	c = s.connect()
	c.mustSubscribe("", keys...)
	require.Equal(t, []string{guest}, told(t, c))
	require.Equal(t, guest, onlyGuest(t, app, "room/1"))
}

// A guest who knows the resume id of another one is that member if it is the
// guest's first, as docs/presence.md says, and has no part in it otherwise.
func TestAGuestWithAnothersResumeID(t *testing.T) {
	app, s := newPresenceApp(t, topics.Config{PresenceGrace: shortGrace})
	v := s.watch("", watching("room/1"))
	victim := s.connect()
	victim.mustSubscribe("", resuming("room/1", "victim"))
	v.until("join")
	id := openReady(t, victim)

	thief := s.connect()
	thief.mustSubscribe("", resuming("room/1", "own"), resuming("room/1", "victim"))
	v.until("join")
	require.NotContains(t, told(t, thief), id)
	require.Equal(t, 204, s.setState("", thief, "room/1", `{"x":"thief"}`).status)
	v.until("update")
	require.Nil(t, v.members[id].State)
	require.Equal(t, 3, v.count)

	victim.disconnect()
	v.until("leave")
	require.NotContains(t, v.ids(), id, "the other one does not extend it")

	copier := s.connect()
	copier.mustSubscribe("", resuming("room/1", "victim"))
	require.Equal(t, id, openReady(t, copier))
	require.Equal(t, 3, int(topics.From(app).Stats().Members))
}

// The endpoint has a list exactly where watchers do.
func TestTheListOverHTTPObeysTheBytes(t *testing.T) {
	app, s := newPresenceApp(t, topics.Config{QueueBytes: 24 << 10, PresenceSnapshot: 100, PresenceGrace: -1})
	root := newSuperuser(t, app)
	v := s.watch(root, watching("room/1"))
	random := topics.NewRand(t)

	var streams []*stream
	lists, counts := 0, 0
	for i := 0; i < 30*topics.Rounds() || lists*counts == 0 && i < 1000; i++ {
		if random.IntN(14) < len(streams) {
			i := random.IntN(len(streams))
			streams[i].disconnect()
			streams = slices.Delete(streams, i, i+1)
		} else {
			c := s.connect()
			streams = append(streams, c)
			c.mustSubscribe("", "room/1")
			state := fmt.Sprintf(`{"x":%q}`, strings.Repeat("x", random.IntN(1900)))
			require.Equal(t, 204, s.setState("", c, "room/1", state).status)
		}

		var (
			answer presenceAnswer
			r      reply
		)
		agree := func() bool {
			for _, e := range v.c.drain() {
				v.apply(e)
			}
			answer, r = s.presence(root, "room/1")
			return answer.Count == len(streams) && v.count == answer.Count && v.counted == (answer.Members == nil)
		}
		require.Eventually(t, agree, patience, 5*time.Millisecond)

		const around = 200 // what is around the members
		require.LessOrEqual(t, len(r.body), 6<<10+around)
		if answer.Members == nil {
			counts++
		} else {
			lists++
		}
	}
	require.Positive(t, lists)
	require.Positive(t, counts)
}
