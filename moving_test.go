package topics_test

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

// A rule comes to read options that the decisions of open subscriptions do not
// know. Nothing is let through by what they knew, and nobody loses what the new
// rule gives.
func TestARuleComesToReadOptions(t *testing.T) {
	const reads = "@request.query.code = 'good'"
	for name, c := range map[string]struct {
		before map[string]any
		change func(t *testing.T, app core.App, rule *core.Record)
	}{
		"open": {
			map[string]any{"subscribeRule": ""},
			func(t *testing.T, app core.App, rule *core.Record) {
				rule.Set("subscribeRule", reads)
				require.NoError(t, app.Save(rule))
			},
		},
		"that is read by a rule": {
			map[string]any{"subscribeRule": "@topic != ''"},
			func(t *testing.T, app core.App, rule *core.Record) {
				rule.Set("subscribeRule", "(@topic != '' && (@request.query.code:lower = 'good'))")
				require.NoError(t, app.Save(rule))
			},
		},
		"by other options": {
			map[string]any{"subscribeRule": "@request.query.code:isset = true && @request.query.other != 'x'"},
			func(t *testing.T, app core.App, rule *core.Record) {
				rule.Set("subscribeRule", "@request.query.none = '' && "+reads)
				require.NoError(t, app.Save(rule))
			},
		},
		"a view rule": {
			map[string]any{"subscribeRule": "@view", "collection": "rooms"},
			func(t *testing.T, app core.App, _ *core.Record) {
				rooms := mustCollection(t, app, "rooms")
				rooms.ViewRule = rule(reads)
				require.NoError(t, app.Save(rooms))
			},
		},
		"a new rule": {
			map[string]any{"subscribeRule": ""},
			func(t *testing.T, app core.App, _ *core.Record) {
				define(t, app, map[string]any{"pattern": "room/" + movedRoom, "subscribeRule": reads})
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			app := newWorldApp(t, topics.Config{SweepInterval: -1})
			s := serve(t, app)
			rooms := mustCollection(t, app, "rooms")
			rooms.ViewRule = rule("")
			require.NoError(t, app.Save(rooms))
			newRecord(t, app, "rooms", map[string]any{"id": movedRoom, "name": "lobby"})
			c.before["pattern"] = "room/{id}"
			record := define(t, app, c.before)
			_, token := newUser(t, app, "ann")
			topic := "room/" + movedRoom

			var good, bad []*stream
			for i := range 12 {
				conn, code, as := s.connect(), "bad", ""
				if i%2 == 0 {
					code = "good"
					good = append(good, conn)
				} else {
					bad = append(bad, conn)
				}
				if i%3 == 0 {
					as = token
				}
				conn.mustSubscribe(as, key(topic, map[string]any{"code": code, "n": i}))
				conn.quiet()
			}
			foreign := newForeign(app)
			(&stream{s: s, id: foreign.Id()}).mustSubscribe(token, key(topic, map[string]any{"code": "good"}), key(topic, map[string]any{"code": "bad"}))

			c.change(t, app, record)
			require.NoError(t, topics.Notify(app, topic, "secret"))
			require.NoError(t, topics.Notify(app, topic, "more"))

			for _, conn := range good {
				require.Equal(t, `"secret"`, conn.next().data)
				require.Equal(t, `"more"`, conn.next().data)
				conn.quiet()
			}
			for _, conn := range bad {
				require.Equal(t, "topic_revoked", conn.next().notice(t).Code)
				conn.quiet()
			}
			received := map[string]string{}
			for range 3 {
				m := <-foreign.Channel()
				received[m.Name] += string(m.Data)
			}
			require.Equal(t, `"secret""more"`, received[key(topic, map[string]any{"code": "good"})], received)
			require.Contains(t, received[key(topic, map[string]any{"code": "bad"})], "topic_revoked")
		})
	}
}

const movedRoom = "room00000000001"

// The members' rule may come to read options too, and those in their grace live
// by the options that they had.
func TestMembersWhenARuleComesToReadOptions(t *testing.T) {
	app, s := newPresenceApp(t, topics.Config{PresenceGrace: 20 * time.Second})
	record := define(t, app, map[string]any{"pattern": "club/{room}", "subscribeRule": "", "presenceRule": "", "presence": true})
	_, annToken := newUser(t, app, "ann")
	bob, bobToken := newUser(t, app, "bob")
	eve, eveToken := newUser(t, app, "eve")

	options := map[string]any{"presence": true, "code": "good"}
	v := s.watch(annToken, key("club/1", options))
	other := s.connect()
	other.mustSubscribe(annToken, key("club/1", map[string]any{"presence": true, "code": "bad"}))
	for code, token := range map[string]string{"good": bobToken, "bad": eveToken} {
		conn := s.connect()
		conn.mustSubscribe(token, key("club/1", map[string]any{"code": code}))
		v.until("join")
		conn.disconnect() // and is in its grace
	}
	require.Contains(t, v.ids(), eve.Id)

	record.Set("subscribeRule", "@request.query.code:isset = true")
	record.Set("presenceRule", "@request.query.code = 'good'")
	require.NoError(t, app.Save(record))
	awaitNotice(t, other, "presence_revoked")

	record.Set("subscribeRule", "@request.query.code = 'good'")
	require.NoError(t, app.Save(record))
	for slices.Contains(v.ids(), eve.Id) {
		v.apply(v.c.next()) // a leave, or a snapshot
	}
	require.Contains(t, v.ids(), bob.Id)
	require.NoError(t, topics.Notify(app, "club/1", "still"))
	v.until("message")
}

func awaitNotice(t *testing.T, c *stream, code string) {
	t.Helper()
	for {
		if e := c.next(); strings.Contains(e.data, `"code":"`+code+`"`) {
			return
		}
	}
}

// Rules that change all the time move their subscriptions to and fro, and lose
// nobody.
func TestMovingToAndFro(t *testing.T) {
	app := newApp(t, topics.Config{SweepInterval: -1})
	s := serve(t, app)
	record := define(t, app, map[string]any{"pattern": "a", "subscribeRule": ""})
	conns := make([]*stream, 4)
	for i := range conns {
		conns[i] = s.connect()
		conns[i].mustSubscribe("", "a?options="+url.QueryEscape(fmt.Sprintf(`{"query":{"x":"%d","y":"%d"}}`, i, i)))
	}
	rules := []string{"", "@request.query.x != 'z'", "@request.query.y != 'z'", "@request.query.x != @request.query.z && @topic = 'a'"}
	for i := range 40 {
		record.Set("subscribeRule", rules[i%len(rules)])
		require.NoError(t, app.Save(record))
		require.NoError(t, topics.Notify(app, "a", i))
		if i%3 == 0 {
			for n, c := range conns {
				c.mustSubscribe("", "a?options="+url.QueryEscape(fmt.Sprintf(`{"query":{"x":"%d","y":"%d"}}`, n, n)))
			}
		}
	}
	for _, c := range conns {
		for i := range 40 {
			require.Equal(t, fmt.Sprint(i), c.next().data)
		}
		c.quiet()
	}
	require.LessOrEqual(t, topics.Grants(app), len(conns))
	for _, c := range conns {
		c.disconnect()
	}
	require.Eventually(t, func() bool { return topics.Grants(app) == 0 }, patience, time.Millisecond)
}
