package topics_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

// A decision that ends with the clock is shared by all subscriptions of an
// account to a topic, and made again when there is something to send.
func TestAClockRuleIsDecidedOnceForAnAccount(t *testing.T) {
	app := newApp(t, topics.Config{SweepInterval: -1, MaxKeysPerTopic: 200})
	s := serve(t, app)
	decisions := topics.CountDecisions(app)
	define(t, app, map[string]any{"pattern": "room/{n}", "subscribeRule": "@now > '2020-01-01 00:00:00'"})
	_, token := newUser(t, app, "ann")

	for i, token := range []string{token, token, "", ""} {
		s.connect().mustSubscribe(token, numbered("room/1?"+fmt.Sprint(i)+"%d", 200)...)
	}
	require.Equal(t, 2, topics.Grants(app), "of ann, and of guests")

	time.Sleep(150 * time.Millisecond) // they have ended
	before := decisions.Load()
	require.NoError(t, topics.Notify(app, "room/1", 1))
	require.LessOrEqual(t, decisions.Load()-before, int64(4), "two, and two that nobody waits for")
}

// An account's revocation is told within a second, and a message comes at once,
// whatever others do who may subscribe to as much as the limits let them.
func TestAnHonestAccountDoesNotWaitForOthers(t *testing.T) {
	w := newWorld(t, map[string]any{"subscribeRule": byMembership}, topics.Config{SweepInterval: -1})
	app, s := w.app, w.s
	define(t, app, map[string]any{"pattern": "clock/{n}", "subscribeRule": "@now > '2020-01-01 00:00:00'"})
	define(t, app, map[string]any{"pattern": "untied/{n}", "subscribeRule": "@collection.bans.topic != @topic"})
	define(t, app, map[string]any{"pattern": "coded/{n}", "subscribeRule": "@collection.bans.topic != @topic && @request.query.n != 'x' && @now > '2020-01-01 00:00:00'"})

	var attackers []*stream
	attack := func(token string, keys ...string) {
		c := s.connect()
		c.mustSubscribe(token, keys...)
		attackers = append(attackers, c)
	}
	for i := range 2 {
		_, token := newUser(t, app, fmt.Sprint("eve", i))
		attack(token, numbered("clock/%d", 300)...)
		attack(token, numbered("untied/%d", 300)...)
		attack(token, numbered("untied/1%03d", 300)...)
	}
	for g := range 6 {
		var keys []string
		for i := range 20 {
			keys = append(keys, key("coded/1", map[string]any{"n": fmt.Sprint(g, "-", i)}))
		}
		attack("", append(keys, numbered(fmt.Sprintf("untied/%d-%%d", g), 60)...)...)
	}
	w.c.mustSubscribe(w.token, w.topic, "public", "coded/1")
	w.c.drain()

	stop := make(chan struct{})
	var writes sync.WaitGroup
	writes.Go(func() { // each touches all of the above
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
			record := core.NewRecord(mustCollection(t, app, "bans"))
			record.Set("topic", fmt.Sprint("nobody", i))
			if app.Save(record) != nil {
				return
			}
		}
	})
	defer writes.Wait()
	defer close(stop)
	time.Sleep(300 * time.Millisecond)

	var slowest time.Duration
	for i := range 20 {
		start := time.Now()
		w.notify("coded/1", fmt.Sprint(i))
		require.Equal(t, fmt.Sprintf(`"%d"`, i), w.c.next().data)
		slowest = max(slowest, time.Since(start))
		time.Sleep(5 * time.Millisecond)
	}
	require.Less(t, slowest, time.Second)

	start := time.Now()
	w.delete(w.member)
	require.Equal(t, "topic_revoked", w.c.next().notice(t).Code)
	told := time.Since(start)
	require.Less(t, told, time.Second)
	t.Logf("%d grants; the slowest message took %v, the revocation was told after %v", topics.Grants(app), slowest, told)
}
