package topics_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"testing"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tests"
	"github.com/pocketbase/pocketbase/tools/types"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

// historyOf returns the data of a topic's messages, whoever asks.
func historyOf(t testing.TB, app core.App, topic string) (data []string) {
	t.Helper()
	page, err := topics.History(app, topic, topics.HistoryOptions{Limit: 500})
	require.NoError(t, err)
	for _, m := range page.Messages {
		data = append(data, string(m.Data))
	}
	return data
}

// namedWorld has topics of every shape that is named after a record. each
// returns a topic of the record with that id.
type namedWorld struct {
	app   *tests.TestApp
	rooms *core.Collection
	each  map[string]func(id string) string
}

func newNamedWorld(t *testing.T, config topics.Config) *namedWorld {
	app := newApp(t, config)
	rooms := newCollection(t, app, "rooms", &core.TextField{Name: "name"})
	for pattern, fields := range map[string]map[string]any{
		"room/{id}":            {"collection": "rooms", "subscribeRule": "id != ''"},
		"room/{id}/{sub}":      {"collection": rooms.Id, "subscribeRule": ""},
		"deep/{x}/{id}/{r...}": {"collection": "rooms", "subscribeRule": ""},
		"joined/{room}":        {"subscribeRule": "@collection.rooms.id ?= @topic.room"},
		"named/{a}/{room}":     {"subscribeRule": "@topic.room ?= @collection.rooms:r.id && @topic.a = 'a'"},
	} {
		fields["pattern"], fields["history"] = pattern, 10
		define(t, app, fields)
	}
	return &namedWorld{app: app, rooms: rooms, each: map[string]func(string) string{
		"bound":       func(id string) string { return "room/" + id },
		"bound, more": func(id string) string { return "room/" + id + "/files" },
		"bound, rest": func(id string) string { return "deep/x/" + id + "/a/b/c" },
		"joined":      func(id string) string { return "joined/" + id },
		"joined, 2":   func(id string) string { return "named/a/" + id },
	}}
}

const roomID = "aaaaaaaaaaaaaaa"

func (w *namedWorld) room(t testing.TB, id string) *core.Record {
	t.Helper()
	record := core.NewRecord(w.rooms)
	record.Id = id
	require.NoError(t, w.app.Save(record))
	return record
}

// However a record goes, what its topics kept goes with it, in memory and on the
// disk, and who comes back with a position is not shown what it had.
func TestAHistoryEndsWithItsRecord(t *testing.T) {
	ways := map[string]func(t *testing.T, w *namedWorld, room *core.Record){
		"deleted": func(t *testing.T, w *namedWorld, room *core.Record) { require.NoError(t, w.app.Delete(room)) },
		"deleted in a transaction": func(t *testing.T, w *namedWorld, room *core.Record) {
			require.NoError(t, w.app.RunInTransaction(func(tx core.App) error { return tx.Delete(room) }))
		},
		"truncated": func(t *testing.T, w *namedWorld, _ *core.Record) {
			require.NoError(t, w.app.TruncateCollection(w.rooms))
		},
		"deleted by SQL, then created": func(t *testing.T, w *namedWorld, room *core.Record) {
			sql(t, w.app, "DELETE FROM rooms")
			w.room(t, room.Id)
		},
		"the collection deleted": func(t *testing.T, w *namedWorld, _ *core.Record) {
			// no rule may name it
			rules, err := w.app.FindAllRecords("_topics")
			require.NoError(t, err)
			for _, r := range rules {
				r.Set("subscribeRule", "")
				require.NoError(t, w.app.Save(r))
			}
			require.NoError(t, w.app.Delete(w.rooms))
		},
	}
	for name, end := range ways {
		t.Run(name, func(t *testing.T) {
			w := newNamedWorld(t, topics.Config{ResumeOverlap: -1})
			s := serve(t, w.app)
			room := w.room(t, roomID)
			other := w.room(t, "bbbbbbbbbbbbbbb")
			for shape, topic := range w.each {
				if name == "the collection deleted" && (shape == "joined" || shape == "joined, 2") {
					continue
				}
				c := s.connect()
				c.mustSubscribe("", key(topic(room.Id), map[string]any{"resume": "r"}))
				require.Equal(t, "ready", story(t, c.drain()))
				notifyAll(t, w.app, topic(room.Id), 1, 3)
				notifyAll(t, w.app, topic(other.Id), 7, 7)
				c.drain()
				c.disconnect()
			}
			topics.SettleHistory(w.app)
			waitForClients(t, w.app, 0)

			end(t, w, room)
			if name == "the collection deleted" {
				w.rooms = newCollection(t, w.app, "rooms", &core.TextField{Name: "name"})
			}
			if _, err := w.app.FindRecordById("rooms", room.Id); err != nil {
				w.room(t, room.Id) // a stranger's
			}
			for shape, topic := range w.each {
				if name == "the collection deleted" && (shape == "joined" || shape == "joined, 2") {
					continue
				}
				require.Empty(t, historyOf(t, w.app, topic(room.Id)), shape)
				if name != "truncated" && name != "the collection deleted" {
					if name != "deleted by SQL, then created" {
						require.Equal(t, []string{"7"}, historyOf(t, w.app, topic(other.Id)), shape)
					}
				}
				if shape == "bound" && name != "the collection deleted" {
					c := s.connect()
					c.mustSubscribe("", key(topic(room.Id), map[string]any{"resume": "r", "replay": 10}))
					require.Equal(t, "ready", story(t, c.drain()))
					c.disconnect()
				}
			}
			topics.SettleHistory(w.app)
			var left int
			require.NoError(t, w.app.AuxDB().NewQuery("SELECT count(*) FROM _topicsMessages WHERE topic LIKE '%"+room.Id+"%'").Row(&left))
			require.Zero(t, left, "on the disk")
			require.NoError(t, w.app.AuxDB().NewQuery("SELECT count(*) FROM _topicsPositions WHERE topic LIKE '%"+room.Id+"/%'").Row(&left))
			require.Zero(t, left, "positions on the disk")
		})
	}
}

// A rollback ends nothing.
func TestARollbackEndsNoHistory(t *testing.T) {
	w := newNamedWorld(t, topics.Config{})
	serve(t, w.app)
	room := w.room(t, roomID)
	notifyAll(t, w.app, "room/"+room.Id, 1, 3)
	rollback := errors.New("no")
	require.ErrorIs(t, w.app.RunInTransaction(func(tx core.App) error {
		return errors.Join(tx.Delete(room), rollback)
	}), rollback)
	require.Len(t, historyOf(t, w.app, "room/"+room.Id), 3)
}

// The end has its place among the messages: what is sent before it in the same
// transaction goes, what is sent after it stays until the id is given again.
func TestAnEndIsInTheOrderOfMessages(t *testing.T) {
	w := newNamedWorld(t, topics.Config{})
	serve(t, w.app)
	room := w.room(t, roomID)
	topic := "room/" + room.Id
	require.NoError(t, w.app.RunInTransaction(func(tx core.App) error {
		return errors.Join(topics.Notify(tx, topic, 1), tx.Delete(room), topics.Notify(tx, topic, 2))
	}))
	require.Equal(t, []string{"2"}, historyOf(t, w.app, topic))
	w.room(t, room.Id)
	require.Empty(t, historyOf(t, w.app, topic))
}

// A topic that a rule ties to an account ends with the account, but not with
// another collection's of the same id where the rule says which it means.
func TestAHistoryEndsWithItsAccount(t *testing.T) {
	app := newApp(t, topics.Config{})
	s := serve(t, app)
	staff := core.NewAuthCollection("staff")
	require.NoError(t, app.Save(staff))
	users, err := app.FindCollectionByNameOrId("users")
	require.NoError(t, err)
	users.CreateRule = types.Pointer("")
	require.NoError(t, app.Save(users))
	define(t, app, map[string]any{"pattern": "user/{user}/inbox", "history": 10, "subscribeRule": "@request.auth.id != '' && @topic.user = @request.auth.id"})
	define(t, app, map[string]any{"pattern": "mine/{id}", "history": 10, "subscribeRule": "@request.auth.collectionName = 'users' && @request.auth.id = @topic.id"})

	ann, _ := newUser(t, app, "ann")
	inbox, mine := "user/"+ann.Id+"/inbox", "mine/"+ann.Id
	fill := func() {
		notifyAll(t, app, inbox, 1, 2)
		notifyAll(t, app, mine, 1, 2)
	}
	fill()

	require.NoError(t, app.Delete(ann))
	require.Empty(t, historyOf(t, app, inbox))
	require.Empty(t, historyOf(t, app, mine))

	fill()
	other := core.NewRecord(staff)
	other.Id = ann.Id
	other.SetEmail("other@topics.test")
	topics.SetCheapPassword(other, "1234567890")
	require.NoError(t, app.Save(other))
	require.Empty(t, historyOf(t, app, inbox), "its rule lets the new account in")
	require.Len(t, historyOf(t, app, mine), 2, "its rule does not")
	require.NoError(t, app.Delete(other))

	// a late message, and then a stranger signs up with the id
	fill()
	body, err := json.Marshal(map[string]string{"id": ann.Id, "email": "eve@topics.test", "password": "1234567890", "passwordConfirm": "1234567890"})
	require.NoError(t, err)
	r := s.request(http.MethodPost, "/api/collections/users/records", "", string(body))
	require.Equal(t, http.StatusOK, r.status, r.body)
	eve, err := app.FindRecordById("users", ann.Id)
	require.NoError(t, err)
	token, err := eve.NewAuthToken()
	require.NoError(t, err)
	r = s.request(http.MethodGet, "/api/topics/history?topic="+url.QueryEscape(inbox), token, "")
	require.Contains(t, r.body, `"messages":[]`)
}

// Saving a rule that takes accounts of two collections for the same warns.
func TestAWarningOfAccountsWithTheSameID(t *testing.T) {
	app := newApp(t, topics.Config{})
	keepLogs(app)
	const line = "A topic rule compares @request.auth.id alone"
	save := func(name, text string) int {
		before := logged(t, app, line)
		define(t, app, map[string]any{"pattern": name, "subscribeRule": text})
		return logged(t, app, line) - before
	}
	suspect := "@request.auth.id != '' && @topic.x = @request.auth.id"
	others, err := app.FindAllCollections(core.CollectionTypeAuth)
	require.NoError(t, err)
	for _, c := range others { // the test app has them
		if c.Name != "users" && c.Name != core.CollectionNameSuperusers {
			sql(t, app, "DELETE FROM _collections WHERE id = '"+c.Id+"'")
		}
	}
	require.NoError(t, app.ReloadCachedCollections())
	require.Zero(t, save("a/{x}", suspect), "one collection")
	require.NoError(t, app.Save(core.NewAuthCollection("staff")))
	for i, text := range []string{suspect, "@collection.demo1.rel_many.id ?= @request.auth.id", "'abc' = @request.auth.id"} {
		require.Equal(t, 1, save(fmt.Sprintf("b%d/{x}", i), text), text)
	}
	for i, text := range []string{"@request.auth.id != ''", "@request.auth.collectionName = 'users' && @topic.x = @request.auth.id", "@request.auth.role = 'x'"} {
		require.Zero(t, save(fmt.Sprintf("c%d/{x}", i), text), text)
	}
}

// However a rule says it, what it compares a parameter with names the topic, if
// it leads to the id of a record.
func TestWhatNamesATopic(t *testing.T) {
	app := newApp(t, topics.Config{})
	serve(t, app)
	rooms := newCollection(t, app, "rooms", &core.TextField{Name: "name"})
	users, err := app.FindCollectionByNameOrId("users")
	require.NoError(t, err)
	newCollection(t, app, "seats",
		&core.RelationField{Name: "room", CollectionId: rooms.Id, MaxSelect: 1},
		&core.RelationField{Name: "user", CollectionId: users.Id, MaxSelect: 1})
	view := core.NewViewCollection("viewed")
	view.ViewQuery = "SELECT id, name FROM rooms"
	require.NoError(t, app.Save(view))

	i := 0
	for subject, rules := range map[string][]map[string]any{
		"room": {
			{"collection": "viewed", "subscribeRule": "id != ''"},
			{"collection": "viewed", "subscribeRule": "@view"},
			{"subscribeRule": "@collection.viewed.id ?= @topic.id"},
			{"subscribeRule": "@collection.rooms.id:lower ?= @topic.id"},
			{"subscribeRule": "@collection.seats.room ?= @topic.id"},
			{"subscribeRule": "@topic.id ?= @collection.seats:a.room.id"},
			{"subscribeRule": "@request.auth.seats_via_user.room ?= @topic.id"},
			{"publishRule": "@collection.rooms.id ?~ @topic.id"},
		},
		"user": {
			{"subscribeRule": "@request.auth.id:lower = @topic.id"},
			{"subscribeRule": "@topic.id ~ @request.auth.id"},
			{"subscribeRule": "@topic.id >= @request.auth.id && @topic.id <= @request.auth.id"},
			{"subscribeRule": "@request.auth.collectionName = 'clients' || @topic.id = @request.auth.id"},
			{"subscribeRule": "(@request.auth.collectionName = 'clients' || @request.auth.collectionName != 'x') && @topic.id = @request.auth.id"},
			{"subscribeRule": "@request.auth.id != '' && @collection.seats.user.id ?= @topic.id"},
			{"presenceRule": "@request.auth.id != '' && @request.auth.id = @topic.id"},
		},
	} {
		for _, fields := range rules {
			i++
			pattern := fmt.Sprintf("p%d/{id}", i)
			fields["pattern"], fields["history"] = pattern, 10
			define(t, app, fields)
			var record *core.Record
			if subject == "room" {
				record = newRecord(t, app, "rooms", nil)
			} else {
				record, _ = newUser(t, app, fmt.Sprint("u", i))
			}
			topic := fmt.Sprintf("p%d/%s", i, record.Id)
			notifyAll(t, app, topic, 1, 2)
			require.NoError(t, app.Delete(record))
			require.Empty(t, historyOf(t, app, topic), "%v", fields)
		}
	}
}

// What could not be written at one moment is written later, the end of a topic
// above all.
func TestAnEndOutlivesALockedDatabase(t *testing.T) {
	w := newNamedWorld(t, topics.Config{})
	serve(t, w.app)
	room := w.room(t, roomID)
	notifyAll(t, w.app, "room/"+room.Id, 1, 3)
	topics.SettleHistory(w.app)

	topics.FailDisk(w.app, 3)
	require.NoError(t, w.app.Delete(room))
	w.room(t, room.Id)
	notifyAll(t, w.app, "room/"+room.Id, 4, 4)
	topics.SettleHistory(w.app)
	app, _ := restart(t, w.app, topics.Config{}, true)
	require.Equal(t, []string{"4"}, historyOf(t, app, "room/"+room.Id))
}

// A kill may take the end of a topic with it: the next start looks.
func TestAnEndThatAKillHasTaken(t *testing.T) {
	w := newNamedWorld(t, topics.Config{})
	serve(t, w.app)
	room := w.room(t, roomID)
	other := w.room(t, "bbbbbbbbbbbbbbb")
	notifyAll(t, w.app, "room/"+room.Id, 1, 3)
	notifyAll(t, w.app, "room/"+other.Id, 1, 3)
	topics.SettleHistory(w.app)
	topics.FailDisk(w.app, 1000)
	require.NoError(t, w.app.Delete(room))
	app, _ := restart(t, w.app, topics.Config{}, false)
	require.Empty(t, historyOf(t, app, "room/"+room.Id))
	require.Len(t, historyOf(t, app, "room/"+other.Id), 3)
}

// A message of an earlier transaction that is told of its end late is not kept
// for another record of the same id.
func TestALateMessageIsNotKeptForTheNext(t *testing.T) {
	w := newNamedWorld(t, topics.Config{})
	serve(t, w.app)
	room := w.room(t, roomID)
	topic := "room/" + room.Id

	committed, goOn := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- w.app.RunInTransaction(func(tx core.App) error {
			tx.TxInfo().OnComplete(func(error) error {
				close(committed)
				<-goOn
				return nil
			})
			return topics.Notify(tx, topic, "secret")
		})
	}()
	<-committed
	require.NoError(t, w.app.Delete(room))
	w.room(t, roomID)
	close(goOn)
	require.NoError(t, <-done)
	require.Empty(t, historyOf(t, w.app, topic))
	notifyAll(t, w.app, topic, 1, 1)
	require.Equal(t, []string{"1"}, historyOf(t, w.app, topic))
}
