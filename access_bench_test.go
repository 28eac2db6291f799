package topics

import (
	"fmt"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tests"
	"github.com/pocketbase/pocketbase/tools/subscriptions"
	"github.com/stretchr/testify/require"
)

const perRoom = 10

// What it costs to keep subscriptions authorised: 10 of them in each of 1,000
// rooms, each with a decision of its own. The figures are in bench/RESULTS.md.
//
//	go test -run '^$' -bench Access -benchtime 2s .

// openRooms returns an app with that many subscriptions, all under one rule.
// Without subscriptions it has no plugin: the baseline.
func openRooms(b *testing.B, open int, rule string) (*tests.TestApp, *Plugin) {
	b.Helper()

	app, err := tests.NewTestApp()
	require.NoError(b, err)
	b.Cleanup(app.Cleanup)
	app.Settings().Logs.MaxDays = 0

	users := mustFind(b, app, "users")
	members := core.NewBaseCollection("members")
	members.Fields.Add(&core.TextField{Name: "room"}, &core.RelationField{Name: "user", CollectionId: users.Id, MaxSelect: 1}, &core.TextField{Name: "role"})
	members.AddIndex("idx_members", false, "room, user", "")
	require.NoError(b, app.Save(members))
	notes := core.NewBaseCollection("notes")
	notes.Fields.Add(&core.TextField{Name: "text"})
	require.NoError(b, app.Save(notes))

	const all = 10_000
	exec := func(statement string) {
		_, err := app.NonconcurrentDB().NewQuery(statement).Execute()
		require.NoError(b, err)
	}
	numbers := fmt.Sprintf("WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i+1 FROM n WHERE i < %d) ", all-1)
	exec(numbers + "INSERT INTO users (id, username, email, tokenKey, password) SELECT 'user' || i, 'user' || i, 'user' || i || '@topics.test', 'key' || i, 'x' FROM n")
	exec(numbers + fmt.Sprintf("INSERT INTO members (id, room, user, role) SELECT 'member' || i, 'room' || (i / %d), 'user' || i, 'x' FROM n", perRoom))
	exec("INSERT INTO notes (id, text) VALUES ('note', 'x')")

	if open == 0 {
		return app, nil
	}

	require.NoError(b, Register(app, Config{SweepInterval: -1, Topics: []Topic{{Pattern: "room/{room}", SubscribeRule: &rule}}}))
	p := From(app)
	for i := range open {
		c := newClient(subscriptions.NewDefaultClient(), p.hub, p.grants, httptest.NewRecorder(),
			clientLimits{messages: 1 << 30, bytes: 1 << 40, writeTimeout: time.Second, heartbeat: -1}, func(*client, string) {})
		p.hub.clients.Store(c, struct{}{})
		go func() { // the connection handler, without a connection
			for range c.channel {
				frames, err := c.take()
				if err != nil {
					return
				}
				c.done(frames)
			}
		}()

		key := fmt.Sprintf("room/room%d", i/perRoom)
		g := p.grants.acquire(app, actionSubscribe, key, subscriptions.SubscriptionOptions{}, credentials{
			collection: users.Id, id: fmt.Sprintf("user%d", i), tokenKey: fmt.Sprintf("key%d", i), secret: users.AuthToken.Secret, expires: forever,
		})
		require.Nil(b, p.grants.decideFor(g))
		require.NoError(b, c.replaceDuring(map[string]*admission{key: {grant: g}}, func() error { c.Subscribe(key); return nil }))
	}

	return app, p
}

const (
	tiedToRoom   = "@collection.members.room ?= @topic.room && @collection.members.role ?= 'x' && @request.auth.id != ''"
	tiedToBoth   = "@collection.members.room ?= @topic.room && @collection.members.user ?= @request.auth.id"
	tiedToNobody = "@request.auth.id != '' && (@collection.members.room ?= @topic.room || @collection.members.role ?= 'all')"
)

// save writes a record again and waits until what it touched is decided.
func save(b *testing.B, app core.App, p *Plugin, collection, id, field string) {
	b.Helper()

	record, err := app.FindRecordById(collection, id)
	require.NoError(b, err)
	var waits map[*grant]wait
	if p != nil {
		waits = waitsFor(p)
	}
	for b.Loop() {
		record.Set(field, "x")
		if err := app.Save(record); err != nil {
			b.Fatal(err)
		}
		for g, resumed := range waits {
			for !g.fresh(time.Now().UnixNano()) {
				<-resumed
			}
		}
	}
}

// wait is a holder that receives when its grant has been decided anew.
type wait chan struct{}

func (w wait) resume(*grant) {
	select {
	case w <- struct{}{}:
	default:
	}
}

func (wait) revoke(*grant, uint64, outcome) bool { panic("the benchmarks revoke nothing") }

func (wait) move(*grant, *grant) { panic("the benchmarks change no rule") }

func (wait) subscriptionKey() string { return "" }

func (wait) guest() owner { return "" }

func waitsFor(p *Plugin) map[*grant]wait {
	waits := map[*grant]wait{}
	for _, g := range p.grants.list() {
		waits[g] = make(wait, 1)
		p.grants.hold(p.grants.acquire(g.app, actionSubscribe, g.key.topic, g.options, g.key.auth), waits[g])
	}
	return waits
}

// A write to a collection that no rule reads.
func BenchmarkAccessWriteUnread(b *testing.B) {
	for _, open := range []int{0, 10, 10_000} {
		b.Run(fmt.Sprintf("open=%d", open), func(b *testing.B) {
			app, _ := openRooms(b, open, tiedToBoth)
			save(b, app, nil, "notes", "note", "text")
		})
	}
}

// A write that touches the subscriptions of one room, or of one member.
func BenchmarkAccessWriteMembers(b *testing.B) {
	for name, rule := range map[string]string{"touches=10": tiedToRoom, "touches=1": tiedToBoth} {
		for _, open := range []int{0, 10, 10_000} {
			b.Run(fmt.Sprintf("%s/open=%d", name, open), func(b *testing.B) {
				app, _ := openRooms(b, open, rule)
				save(b, app, nil, "members", "member3", "role")
			})
		}
	}
}

// A write under a rule that the analysis cannot narrow touches everybody.
func BenchmarkAccessWriteNotNarrowed(b *testing.B) {
	for _, open := range []int{0, 10, 10_000} {
		b.Run(fmt.Sprintf("open=%d", open), func(b *testing.B) {
			app, p := openRooms(b, open, tiedToNobody)
			save(b, app, p, "members", "member3", "role")
		})
	}
}

// Publishing to a room while other rooms' members are written 100 times a
// second, and while nothing is.
func BenchmarkAccessPublish(b *testing.B) {
	app, p := openRooms(b, 10_000, tiedToBoth)
	for _, writes := range []int{0, 100} {
		b.Run(fmt.Sprintf("writes=%d", writes), func(b *testing.B) {
			stop, stopped := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(stopped)
				if writes == 0 {
					return
				}
				tick := time.NewTicker(time.Second / time.Duration(writes))
				defer tick.Stop()
				record, err := app.FindRecordById("members", "member9999")
				for err == nil {
					select {
					case <-stop:
						return
					case <-tick.C:
						record.Set("role", "x")
						err = app.Save(record)
					}
				}
				b.Error(err)
			}()
			for b.Loop() {
				if err := p.Notify(app, "room/room0", 1); err != nil {
					b.Fatal(err)
				}
			}
			close(stop)
			<-stopped
		})
	}
}

// One decision, as a subscriber who comes in needs it.
func BenchmarkAccessDecision(b *testing.B) {
	for name, rule := range map[string]string{"signed in": "@request.auth.id != ''", "member": tiedToBoth, "everyone": ""} {
		b.Run(name, func(b *testing.B) {
			_, p := openRooms(b, 10, rule)
			g := p.grants.list()[0]
			b.ReportAllocs()
			for b.Loop() {
				if o := p.decideGrant(g); o.denial != nil {
					b.Fatal(o.denial)
				}
			}
		})
	}
}
