package topics_test

import (
	"errors"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
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
			lost, lostToken := newUser(t, app, "lost")

			v := s.watch(bobToken, watching("club/1"))
			for _, token := range []string{annToken, eveToken, goneToken, lostToken} {
				s.connect().mustSubscribe(token, key("club/1", map[string]any{"state": map[string]any{"x": 1}}))
			}
			for len(v.ids()) < 5 {
				v.apply(v.c.next())
			}
			since := v.members["users"+ann.Id].Since
			topics.SettleHistory(app)

			// eve may not be there any more by then, which only the database knows
			config.PresenceGrace = time.Second
			_, err := app.DB().NewQuery("UPDATE users SET name = 'out' WHERE id = {:id}").Bind(dbx.Params{"id": eve.Id}).Execute()
			require.NoError(t, err)
			_, err = app.DB().NewQuery("DELETE FROM users WHERE id = {:id}").Bind(dbx.Params{"id": lost.Id}).Execute()
			require.NoError(t, err)
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
			require.ElementsMatch(t, []string{"leave club/1 " + eve.Id, "leave club/1 " + lost.Id}, []string{receive(t, calls), receive(t, calls)})
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

// What has changed right before a clean stop is kept too.
func TestACleanStopKeepsTheLastMembers(t *testing.T) {
	config := topics.Config{PresenceGrace: time.Minute}
	app, s := newPresenceApp(t, config)
	ann, annToken := newUser(t, app, "ann")
	bob, bobToken := newUser(t, app, "bob")
	s.connect().mustSubscribe(bobToken, "room/1")
	s.connect().mustSubscribe(annToken, "room/1") // within the flush period

	app, _ = restart(t, app, config, true)
	list, err := topics.Presence(app, "room/1")
	require.NoError(t, err)
	require.Len(t, list, 2)
	require.ElementsMatch(t, []string{ann.Id, bob.Id}, []string{list[0].ID, list[1].ID})
}

// A handler of OnRecordEnrich may ask who is there while that is restored.
func TestAnEnrichHandlerMayAskWhoIsThere(t *testing.T) {
	config := topics.Config{PresenceGrace: time.Minute}
	app, s := newPresenceApp(t, config)
	define(t, app, map[string]any{"pattern": "club/{room}", "subscribeRule": "", "presenceRule": "", "presence": true, "presenceFields": "name"})
	_, ann := newUser(t, app, "ann")
	_, bob := newUser(t, app, "bob")
	s.connect().mustSubscribe(ann, "club/1")
	topics.SettleHistory(app)

	app, s = restart(t, app, config, true)
	app.OnRecordEnrich("users").BindFunc(func(e *core.RecordEnrichEvent) error {
		if _, err := topics.PresenceCount(e.App, "club/1"); err != nil && !errors.Is(err, topics.ErrClosed) {
			return err
		}
		return e.Next()
	})
	require.Len(t, s.watch(bob, watching("club/1")).ids(), 2)
}

// Members that are read so slowly that the grace is over make no event that
// does not fit.
func TestMembersThatAreReadAfterTheGrace(t *testing.T) {
	config := topics.Config{PresenceGrace: 500 * time.Millisecond}
	app, s := newPresenceApp(t, config)
	define(t, app, map[string]any{"pattern": "club/{room}", "subscribeRule": "", "presenceRule": "", "presence": true, "presenceFields": "name"})
	_, token := newUser(t, app, "ann")
	s.connect().mustSubscribe(token, "club/1")
	topics.SettleHistory(app)

	next := newAppIn(t, app.DataDir(), config)
	slow := make(chan struct{})
	next.OnRecordEnrich("users").BindFunc(func(e *core.RecordEnrichEvent) error {
		<-slow
		return e.Next()
	})
	s = serve(t, next)

	c, first := s.connect(), make(chan struct{})
	go func() {
		defer close(first)
		c.mustSubscribe("", "club/1")
	}()
	require.Eventually(t, func() bool { return topics.Restored(next) }, patience, time.Millisecond)
	v := s.watch("", watching("club/1"))
	close(slow)
	<-first
	for v.count != 2 || len(v.ids()) != 2 { // the two guests
		v.apply(v.c.next())
	}
}
