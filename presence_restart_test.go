package topics_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

// A restart of the server shows as nothing: members are in their grace.
func TestMembersSurviveARestart(t *testing.T) {
	for name, clean := range map[string]bool{"clean": true, "kill": false} {
		t.Run(name, func(t *testing.T) {
			config := topics.Config{PresenceGrace: 2 * time.Second}
			app, s := newPresenceApp(t, config)
			define(t, app, map[string]any{
				"pattern": "club/{room}", "subscribeRule": `@request.auth.name != "out"`, "presenceRule": "", "presence": true, "presenceFields": "name",
			})
			ann, annToken := newUser(t, app, "ann")
			bob, bobToken := newUser(t, app, "bob")
			eve, eveToken := newUser(t, app, "eve")
			gone, goneToken := newUser(t, app, "gone")

			v := s.watch(bobToken, watching("club/1"))
			for _, token := range []string{annToken, eveToken, goneToken} {
				s.connect().mustSubscribe(token, key("club/1", map[string]any{"state": map[string]any{"x": 1}}))
			}
			for len(v.ids()) < 4 {
				v.apply(v.c.next())
			}
			since := v.members["users"+ann.Id].Since
			topics.SettleHistory(app)

			// eve may not be there any more by then
			config.PresenceGrace = time.Second
			eve.Set("name", "out")
			require.NoError(t, app.Save(eve))
			app, s = restart(t, app, config, clean)

			calls := hookStory(topics.From(app))
			v = s.watch(bobToken, watching("club/1"))
			require.Equal(t, sorted(ann.Id, bob.Id, gone.Id), v.ids())
			require.Equal(t, since, v.members["users"+ann.Id].Since)
			require.Equal(t, map[string]any{"x": 1.0}, v.members["users"+ann.Id].State)
			require.Zero(t, v.members["users"+ann.Id].Connections)

			s.connect().mustSubscribe(annToken, key("club/1", map[string]any{"state": map[string]any{"x": 1}}))
			v.until("leave")
			require.Equal(t, sorted(ann.Id, bob.Id), v.ids())
			require.NotContains(t, v.types, "join")
			require.NotContains(t, v.types, "update")
			require.Equal(t, "occupied club/1 club/{room}", receive(t, calls))
			require.Equal(t, "leave club/1 "+gone.Id, receive(t, calls))

			// and once more: who has come back is still one of them
			topics.SettleHistory(app)
			_, s = restart(t, app, config, clean)
			v = s.watch(bobToken, watching("club/1"))
			require.Equal(t, sorted(ann.Id, bob.Id), v.ids())
		})
	}
}

func TestMembersInMemoryEndWithTheProcess(t *testing.T) {
	config := topics.Config{HistoryInMemory: true}
	app, s := newPresenceApp(t, config)
	_, ann := newUser(t, app, "ann")
	bob, bobToken := newUser(t, app, "bob")
	s.connect().mustSubscribe(ann, "room/1")

	_, s = restart(t, app, config, true)
	require.Equal(t, []string{bob.Id}, s.watch(bobToken, watching("room/1")).ids())
}
