package topics_test

import (
	"errors"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

const memRule = `@request.auth.id != "" && memberships_via_room.user ?= @request.auth.id`

func noSweep() topics.Config { return topics.Config{SweepInterval: -1} }

// without expects that the message has not come.
func (c *stream) without(data string) {
	c.s.t.Helper()
	for _, e := range c.drain() {
		require.NotEqual(c.s.t, `"`+data+`"`, e.data)
	}
}

// newFailingWorld has a user more, and memberships whose save fails after the
// write.
func newFailingWorld(t *testing.T) (*world, *core.Record) {
	t.Helper()
	w := newWorld(t, map[string]any{"collection": "rooms", "subscribeRule": memRule}, noSweep())
	bob, _ := newUser(t, w.app, "bob")
	w.app.OnRecordUpdate("memberships").BindFunc(func(e *core.RecordEvent) error {
		if err := e.Next(); err != nil {
			return err
		}
		return errors.New("mail server is down")
	})
	return w, bob
}

// The write is in the database, then a handler of the save returns an error.
func TestAWriteCountsThoughItsSaveFails(t *testing.T) {
	w, bob := newFailingWorld(t)
	w.member.Set("user", bob.Id)
	require.Error(t, w.app.Save(w.member))
	m, err := w.app.FindRecordById("memberships", w.member.Id)
	require.NoError(t, err)
	require.Equal(t, bob.Id, m.GetString("user"), "committed")
	require.Eventually(t, func() bool { return topics.Settled(w.app) }, patience, time.Millisecond)
	require.NoError(t, topics.Notify(w.app, w.topic, "secret"))
	w.c.without("secret")
}

// A save fails within a transaction that is committed all the same.
func TestAWriteCountsThoughItsSaveFailsInATransaction(t *testing.T) {
	w, bob := newFailingWorld(t)
	require.NoError(t, w.app.RunInTransaction(func(tx core.App) error {
		w.member.Set("user", bob.Id)
		_ = tx.Save(w.member)
		return nil
	}))
	require.NoError(t, topics.Notify(w.app, w.topic, "secret"))
	w.c.without("secret")
}

type slowMember struct {
	core.BaseRecordProxy
	between func()
}

func (m *slowMember) DBExport(app core.App) (map[string]any, error) {
	if m.between != nil {
		m.between()
	}
	return m.ProxyRecord().DBExport(app)
}

// What a row held between two saves that overlap is known to neither.
func TestOverlappingSavesOfOneRow(t *testing.T) {
	w := newWorld(t, map[string]any{"collection": "rooms", "subscribeRule": memRule}, noSweep())
	bob, bobToken := newUser(t, w.app, "bob")
	eve, _ := newUser(t, w.app, "eve")
	c := w.s.connect()

	first, err := w.app.FindRecordById("memberships", w.member.Id)
	require.NoError(t, err)
	second, err := w.app.FindRecordById("memberships", w.member.Id)
	require.NoError(t, err)
	p := &slowMember{}
	p.SetProxyRecord(second)
	second.Set("user", eve.Id)
	p.between = func() {
		p.between = nil
		first.Set("user", bob.Id)
		require.NoError(t, w.app.Save(first))
		c.mustSubscribe(bobToken, w.topic)
	}
	require.NoError(t, w.app.Save(p))
	m, err := w.app.FindRecordById("memberships", w.member.Id)
	require.NoError(t, err)
	require.Equal(t, eve.Id, m.GetString("user"))
	require.Eventually(t, func() bool { return topics.Settled(w.app) }, patience, time.Millisecond)
	require.NoError(t, topics.Notify(w.app, w.topic, "secret"))
	c.without("secret")
}

// A key that was PocketBase's own when it was subscribed has no decision.
func TestAReservedTopicBecomesACustomOne(t *testing.T) {
	w := newWorld(t, map[string]any{"collection": "rooms", "subscribeRule": memRule}, noSweep())
	guest := w.s.connect()
	guest.mustSubscribe("", "bans/42")
	rename(t, w.app, "bans", "old_bans")
	define(t, w.app, map[string]any{"pattern": "bans/{x}", "subscribeRule": nil})
	require.NoError(t, topics.Notify(w.app, "bans/42", "secret"))
	guest.without("secret")
}

type plain struct {
	core.BaseModel
	Usr string `db:"usr"`
}

func (*plain) TableName() string { return "plain" }

// Nothing but its SQL says what a view reads.
func TestAViewOfATableThatIsNoCollection(t *testing.T) {
	app := newWorldApp(t, noSweep())
	_, err := app.DB().NewQuery("CREATE TABLE plain (id TEXT PRIMARY KEY, usr TEXT)").Execute()
	require.NoError(t, err)
	v := core.NewViewCollection("vplain")
	v.ViewQuery = "SELECT id, usr FROM plain"
	require.NoError(t, app.Save(v))
	s := serve(t, app)
	ann, token := newUser(t, app, "ann")
	row := &plain{Usr: ann.Id}
	row.Id = "abc"
	require.NoError(t, app.Save(row))
	define(t, app, map[string]any{"pattern": "x", "subscribeRule": `@request.auth.id != "" && @collection.vplain.usr ?= @request.auth.id`})
	c := s.connect()
	c.mustSubscribe(token, "x")
	require.NoError(t, topics.Notify(app, "x", "one"))
	require.Equal(t, `"one"`, c.next().data)
	require.NoError(t, app.Delete(row))
	require.NoError(t, topics.Notify(app, "x", "secret"))
	c.without("secret")
}

// What is sent after a commit does not reach whoever that commit has removed.
func TestNotifyBeforeTheRemovalInOneTransaction(t *testing.T) {
	w := newWorld(t, map[string]any{"collection": "rooms", "subscribeRule": memRule}, noSweep())
	require.NoError(t, w.app.RunInTransaction(func(tx core.App) error {
		if err := topics.Notify(tx, w.topic, "secret"); err != nil {
			return err
		}
		return tx.Delete(w.member)
	}))
	w.c.without("secret")
}
