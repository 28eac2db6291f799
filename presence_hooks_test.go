package topics_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

// hookStory records the calls of presence hooks, in order.
func hookStory(p *topics.Plugin, tags ...string) chan string {
	calls := make(chan string, 1000)
	onTopic := func(what string) func(e *topics.TopicEvent) error {
		return func(e *topics.TopicEvent) error {
			calls <- what + " " + e.Topic + " " + e.Pattern
			return e.Next()
		}
	}
	onMember := func(what string) func(e *topics.MemberEvent) error {
		return func(e *topics.MemberEvent) error {
			calls <- what + " " + e.Topic + " " + e.Member.ID
			return e.Next()
		}
	}
	p.OnOccupied(tags...).BindFunc(onTopic("occupied"))
	p.OnVacated(tags...).Bind(&hook.Handler[*topics.TopicEvent]{Id: fmt.Sprint("vacated", tags), Func: onTopic("vacated")})
	p.OnJoin(tags...).BindFunc(onMember("join"))
	p.OnLeave(tags...).BindFunc(onMember("leave"))
	return calls
}

func receive(t testing.TB, calls chan string) string {
	t.Helper()
	expired := time.NewTimer(patience)
	defer expired.Stop()
	select {
	case call := <-calls:
		return call
	case <-expired.C:
		t.Fatal("no hook was called")
		return ""
	}
}

func TestPresenceHooks(t *testing.T) {
	app, s := newPresenceApp(t, topics.Config{PresenceGrace: shortGrace})
	define(t, app, map[string]any{"pattern": "plain", "subscribeRule": ""})
	all := hookStory(topics.From(app))
	rooms := hookStory(topics.From(app), "room/{room}")
	root := newSuperuser(t, app)
	ann, token := newUser(t, app, "ann")

	// a superuser is a subscriber, and no member
	c := s.connect()
	c.mustSubscribe(root, "room/1")
	require.Equal(t, "occupied room/1 room/{room}", receive(t, all))
	one := s.connect()
	one.mustSubscribe(token, "room/1")
	require.Equal(t, "join room/1 "+ann.Id, receive(t, all))

	// a topic without presence has subscribers too
	c.mustSubscribe(root, "room/1", "plain")
	require.Equal(t, "occupied plain plain", receive(t, all))
	c.mustSubscribe(root, "room/1")
	require.Equal(t, "vacated plain plain", receive(t, all))

	// other tabs and reconnects are nothing
	two := s.connect()
	two.mustSubscribe(token, watching("room/1"))
	one.disconnect()
	c.disconnect()
	two.mustSubscribe(token)
	two.mustSubscribe(token, "room/1")
	start := time.Now()
	two.disconnect()
	require.Equal(t, "leave room/1 "+ann.Id, receive(t, all))
	require.GreaterOrEqual(t, time.Since(start), shortGrace)
	require.Equal(t, "vacated room/1 room/{room}", receive(t, all))
	require.Empty(t, all)

	require.Equal(t, "occupied room/1 room/{room}", receive(t, rooms))
	require.Equal(t, "join room/1 "+ann.Id, receive(t, rooms))
	require.Equal(t, "leave room/1 "+ann.Id, receive(t, rooms))
	require.Equal(t, "vacated room/1 room/{room}", receive(t, rooms))
	require.Empty(t, rooms)
}

// A handler may do what it likes, and wait: nobody waits for it, and what has
// been undone meanwhile is not told.
func TestHandlersHoldNobodyUp(t *testing.T) {
	app, s := newPresenceApp(t, topics.Config{PresenceGrace: -1})
	p := topics.From(app)

	hold, held := make(chan struct{}), make(chan struct{})
	p.OnOccupied("room/slow").BindFunc(func(e *topics.TopicEvent) error {
		held <- struct{}{}
		<-hold
		// it may call back
		require.NoError(t, topics.Notify(e.App, e.Topic, "hello"))
		_, err := topics.Presence(e.App, e.Topic)
		return errors.Join(err, errors.New("an error ends nothing"))
	})
	p.OnOccupied("room/panic").BindFunc(func(*topics.TopicEvent) error { panic("neither does a panic") })
	calls := hookStory(p)

	c := s.connect()
	c.mustSubscribe("", "room/slow")
	<-held
	c.mustSubscribe("", "room/slow", "room/2", "room/panic", key("room/panic", map[string]any{"envelope": true}))
	seen := map[string]bool{}
	for len(seen) < 3 { // 2 has both, and so has panic but for the one handler
		seen[receive(t, calls)] = true
	}

	// joined and gone while the handler is busy
	for range 50 {
		other := s.connect()
		other.mustSubscribe("", "room/slow")
		other.disconnect()
	}
	waitForClients(t, app, 1)
	require.Eventually(t, func() bool { return topics.PresenceTold(app, "room/slow") }, patience, time.Millisecond)
	close(hold)
	require.Equal(t, "ready", c.envelope().Type)
	require.Equal(t, `"hello"`, c.next().data)
	require.Regexp(t, "^join room/slow ", receive(t, calls), "one of the subscriber that is there")
	require.Empty(t, calls)
}

// Every join has its leave, with many at once.
func TestHooksAreBalanced(t *testing.T) {
	app, s := newPresenceApp(t, topics.Config{PresenceGrace: -1})
	p := topics.From(app)

	var mu sync.Mutex
	members, occupied := map[string]int{}, map[string]int{}
	calls := make(chan struct{}, 10_000)
	add := func(to map[string]int, key string, n int) {
		mu.Lock()
		to[key] += n
		require.Contains(t, []int{0, 1}, to[key], key)
		mu.Unlock()
		calls <- struct{}{}
	}
	p.OnJoin().BindFunc(func(e *topics.MemberEvent) error {
		add(members, e.Topic+e.Member.ID, 1)
		return e.Next()
	})
	p.OnLeave().BindFunc(func(e *topics.MemberEvent) error {
		add(members, e.Topic+e.Member.ID, -1)
		return e.Next()
	})
	p.OnOccupied().BindFunc(func(e *topics.TopicEvent) error {
		add(occupied, e.Topic, 1)
		return e.Next()
	})
	p.OnVacated().BindFunc(func(e *topics.TopicEvent) error {
		add(occupied, e.Topic, -1)
		return e.Next()
	})

	var visitors sync.WaitGroup
	for i := range 4 {
		c := s.connect()
		visitors.Go(func() {
			for n := range 30 {
				c.mustSubscribe("", fmt.Sprintf("room/%d", (i+n)%3))
			}
			c.mustSubscribe("")
		})
	}
	visitors.Wait()

	over := func() bool {
		mu.Lock()
		defer mu.Unlock()
		for _, counts := range []map[string]int{members, occupied} {
			for _, n := range counts {
				if n != 0 {
					return false
				}
			}
		}
		return len(occupied) == 3
	}
	expired := time.NewTimer(patience)
	defer expired.Stop()
	for !over() {
		select {
		case <-calls:
		case <-expired.C:
			t.Fatal("somebody has not left", members, occupied)
		}
	}
}
