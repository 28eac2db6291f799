package topics

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/tests"
	"github.com/pocketbase/pocketbase/tools/subscriptions"
	"github.com/stretchr/testify/require"
)

// openClients returns an app with that many clients on the topic "a", whose
// queues are emptied by drain.
func openClients(t testing.TB, count int) (p *Plugin, drain func()) {
	t.Helper()

	app, err := tests.NewTestApp()
	require.NoError(t, err)
	t.Cleanup(app.Cleanup)
	everyone := ""
	require.NoError(t, Register(app, Config{Topics: []Topic{{Pattern: "a", SubscribeRule: &everyone}}}))
	p = From(app)

	clients := make([]*client, count)
	for i := range clients {
		clients[i] = newClient(subscriptions.NewDefaultClient(), p.hub, p.grants, httptest.NewRecorder(),
			clientLimits{messages: 1 << 30, bytes: 1 << 40, writeTimeout: time.Second, heartbeat: -1}, func(*client, string) {})
		clients[i].Subscribe("a")
	}
	return p, func() {
		for _, c := range clients {
			if len(c.channel) == 0 {
				continue
			}
			<-c.channel
			frames, err := c.take()
			require.NoError(t, err)
			c.done(frames)
			giveBack(frames)
		}
	}
}

// One publish costs some allocations, however many subscribers it has.
func TestPublishAllocatesNothingPerSubscriber(t *testing.T) {
	p, drain := openClients(t, 1000)
	m := Message{Topic: "a", Data: json.RawMessage(`{"test":123}`)}
	_, _ = p.deliver(m) // every client has a queue now
	allocations := testing.AllocsPerRun(5, func() { _, _ = p.deliver(m) })
	require.Less(t, allocations, 10.0)
	drain()
}

func BenchmarkPublish(b *testing.B) {
	for _, count := range []int{1, 100, 1000, 10_000} {
		b.Run(fmt.Sprintf("subscribers=%d", count), func(b *testing.B) {
			p, drain := openClients(b, count)
			m := Message{Topic: "a", Data: json.RawMessage(`{"test":123}`)}
			b.ReportAllocs()
			for b.Loop() {
				_, _ = p.deliver(m)
				drain()
			}
		})
	}
}

func BenchmarkQueue(b *testing.B) {
	p, _ := openClients(b, 0)
	c := newClient(subscriptions.NewDefaultClient(), p.hub, p.grants, httptest.NewRecorder(),
		clientLimits{messages: 1 << 30, bytes: 1 << 40, writeTimeout: time.Second, heartbeat: -1}, func(*client, string) {})
	f := newFrame(subscriptions.Message{Name: "a", Data: []byte(`{"test":123}`)})
	for _, backlog := range []int{1, 10, 100} {
		b.Run(fmt.Sprintf("backlog=%d", backlog), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				for range backlog {
					c.enqueue(f)
				}
				<-c.channel
				frames, err := c.take()
				if err != nil {
					b.Fatal(err)
				}
				c.done(frames)
				giveBack(frames)
			}
		})
	}
}

func BenchmarkFrame(b *testing.B) {
	event, id := newEventLine("room/42"), []byte("id:0123456789012345\n")
	data := json.RawMessage(`{"test":123}`)
	buf := make([]byte, 0, 1024)
	b.ReportAllocs()
	for b.Loop() {
		f := frame{event: event, data: newDataLine(data)}
		buf = f.appendTo(buf[:0], id)
	}
}

func BenchmarkParseKeys(b *testing.B) {
	keys := []string{"room/42", "room/43?options=%7B%22query%22%3A%7B%22replay%22%3A%2250%22%7D%7D", "rooms/*"}
	b.ReportAllocs()
	for b.Loop() {
		parseKeys(keys)
	}
}

// A decision with a plan, and one for which core's resolver is asked.
func BenchmarkDecision(b *testing.B) {
	app, p := openRooms(b, 1, tiedToBoth)
	user, err := app.FindRecordById("users", "user0")
	require.NoError(b, err)
	with, err := p.rules.find(app, "room/room0")
	require.NoError(b, err)
	without := *with
	without.plans = nil

	for name, d := range map[string]*definition{"plan": with, "resolver": &without} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				ok, err := d.allows(app, actionSubscribe, "room/room0", askerOf(realtimeInfo(subscriptions.SubscriptionOptions{}, user)))
				if err != nil || !ok {
					b.Fatal(ok, err)
				}
			}
		})
	}
}
