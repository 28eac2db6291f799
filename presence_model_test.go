package topics_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

// Accounts come and go with several connections, lose their rights and get them
// back, and set states. After each step every watcher's snapshots and events
// make the members that there are; and at each event they fit together (see
// view.apply).
func TestPresenceModel(t *testing.T) {
	app, s := newPresenceApp(t, topics.Config{PresenceGrace: 50 * time.Millisecond, PresenceSnapshot: 5})
	define(t, app, map[string]any{
		"pattern": "club/{room}", "presence": true, "presenceFields": "name",
		"subscribeRule": `@request.auth.name != "out"`, "presenceRule": `@request.auth.name != "blind"`,
	})
	random := topics.NewRand(t)
	rooms := []string{"club/1", "club/2"}

	type account struct {
		record *core.Record
		token  string
		tabs   map[*stream]string // with its room
		name   string
	}
	var accounts []*account
	for i := range 7 {
		record, token := newUser(t, app, fmt.Sprint("user", i))
		accounts = append(accounts, &account{record: record, token: token, tabs: map[*stream]string{}})
	}
	root := newSuperuser(t, app)
	views := map[string]*view{}
	for _, room := range rooms {
		views[room] = s.watch(root, watching(room))
	}

	// truth is what the steps so far make
	truth := func(room string) map[string]string {
		members := map[string]string{}
		for _, a := range accounts {
			for _, in := range a.tabs {
				if in == room && a.name != "out" {
					members[a.record.Id] = a.name
				}
			}
		}
		return members
	}
	names := func(v *view) map[string]string {
		members := map[string]string{}
		for _, m := range v.members {
			name, _ := m.Record["name"].(string)
			members[m.ID] = name
		}
		return members
	}

	for range 80 * topics.Rounds() {
		a := accounts[random.IntN(len(accounts))]
		room := rooms[random.IntN(len(rooms))]
		switch random.IntN(6) {
		case 0, 1:
			if len(a.tabs) < 3 && a.name != "out" {
				c := s.connect()
				c.mustSubscribe(a.token, key(room, map[string]any{"envelope": true, "state": map[string]any{"n": random.IntN(3)}}))
				a.tabs[c] = room
			}
		case 2:
			for c := range a.tabs {
				c.disconnect()
				delete(a.tabs, c)
				break
			}
		case 3:
			for c := range a.tabs { // moves on
				if a.name != "out" {
					c.mustSubscribe(a.token, key(room, map[string]any{"presence": true}))
					a.tabs[c] = room
				}
				break
			}
		case 4:
			a.name = []string{"", "out", "blind", "Ann"}[random.IntN(4)]
			a.record.Set("name", a.name)
			require.NoError(t, app.Save(a.record))
			if a.name == "out" {
				for c := range a.tabs { // its subscriptions are gone for good
					c.disconnect()
				}
				clear(a.tabs)
			}
		case 5:
			for c, in := range a.tabs {
				s.setState(a.token, c, in, fmt.Sprintf(`{"n":%d}`, random.IntN(3)))
				break
			}
		}

		for room, v := range views {
			want := truth(room)
			for v.count != len(want) || !v.counted && !maps.Equal(names(v), want) {
				v.apply(v.c.next())
			}
		}
	}

	for _, room := range rooms {
		list, err := topics.Presence(app, room)
		require.NoError(t, err)
		var ids []string
		for _, m := range list {
			ids = append(ids, m.ID)
		}
		require.ElementsMatch(t, slices.Collect(maps.Keys(truth(room))), ids)
	}
}
