//go:build unix

package topics

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tests"
	"github.com/pocketbase/pocketbase/tools/subscriptions"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// What it costs to know who is on a topic, and to tell it. The figures are in
// bench/RESULTS.md.
//
//	go test -run '^$' -bench Presence -benchtime 1x -timeout 10m .

// crowd is an app on its disk with users, whose clients have no connection:
// what is queued for them is taken out by goroutines, as the connection
// handlers do it.
type crowd struct {
	t       testing.TB
	app     *tests.TestApp
	p       *Plugin
	users   []*core.Record
	clients []*crowdClient

	expected atomic.Int64 // members
	informed atomic.Int64 // clients that were told so
	failed   atomic.Int64 // clients that were closed

	end sync.Once
}

type crowdClient struct {
	*client

	knows  int64        // members
	events atomic.Int64 // of presence
	frames atomic.Int64
	bytes  atomic.Int64
}

// The patterns of crowd's rules, all for whoever is signed in.
const (
	crowdOff    = "off/"    // without presence
	crowdOn     = "on/"     // with it
	crowdFields = "fields/" // which shows a field of the members
)

const (
	crowdWatching  = `?options={"query":{"presence":"true"}}`
	crowdEnveloped = `?options={"query":{"envelope":"true"}}`
)

func newCrowd(t testing.TB, users int) *crowd {
	t.Helper()

	app, err := tests.NewTestApp()
	require.NoError(t, err)
	c := &crowd{t: t, app: app}
	t.Cleanup(c.close)
	app.Settings().Logs.MaxDays = 0

	_, err = app.NonconcurrentDB().NewQuery(fmt.Sprintf("WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i+1 FROM n WHERE i < %d) ", users-1) +
		"INSERT INTO users (id, username, email, tokenKey, password, name) SELECT printf('user%011d', i), 'user' || i, 'user' || i || '@topics.test', 'key' || i, 'x', 'User ' || i FROM n").Execute()
	require.NoError(t, err)

	signedIn := "@request.auth.id != ''"
	// no grace ends while something is measured
	require.NoError(t, Register(app, Config{SweepInterval: -1, PresenceGrace: time.Hour, Topics: []Topic{
		{Pattern: crowdOff + "{room}", SubscribeRule: &signedIn},
		{Pattern: crowdOn + "{room}", SubscribeRule: &signedIn, PresenceRule: &signedIn, Presence: true},
		{Pattern: crowdFields + "{room}", SubscribeRule: &signedIn, PresenceRule: &signedIn, Presence: true, PresenceFields: []string{"name"}},
	}}))
	c.p = From(app)
	c.p.openDisk(app)

	require.NoError(t, app.RecordQuery("users").OrderBy("id").All(&c.users))
	c.users = slices.DeleteFunc(c.users, func(r *core.Record) bool { return len(r.Id) != 15 || r.Id[:5] != "user0" })
	require.Len(t, c.users, users)
	return c
}

func (c *crowd) close() { c.end.Do(c.app.Cleanup) }

// open adds clients with the limits of the default configuration.
func (c *crowd) open(count int) []*crowdClient {
	limits := clientLimits{messages: c.p.config.QueueMessages, bytes: c.p.config.QueueBytes, writeTimeout: time.Second, heartbeat: -1}
	for range count {
		one := &crowdClient{}
		one.client = newClient(subscriptions.NewDefaultClient(), c.p.hub, c.p.grants, httptest.NewRecorder(), limits,
			func(*client, string) { c.failed.Add(1) })
		c.p.hub.clients.Store(one.client, struct{}{})
		c.clients = append(c.clients, one)
		go c.read(one)
	}
	return c.clients[len(c.clients)-count:]
}

// leave ends all clients.
func (c *crowd) leave() {
	for _, one := range c.clients {
		one.Discard()
		c.p.hub.clients.Delete(one.client)
	}
	c.clients = nil
	require.Zero(c.t, c.failed.Load(), "closed as slow consumers")
}

var countField = []byte(`,"count":`)

// read does what the connection handler does, apart from writing.
func (c *crowd) read(one *crowdClient) {
	for range one.channel {
		frames, err := one.take()
		if err != nil {
			return
		}
		for _, f := range *frames {
			one.frames.Add(1)
			one.bytes.Add(int64(len(one.idLine) + f.size()))
			_, after, found := bytes.Cut(f.data[:min(len(f.data), 100)], countField)
			if !found {
				continue
			}
			one.events.Add(1)
			digits := after[:bytes.IndexAny(after, ",}")]
			known, _ := strconv.ParseInt(string(digits), 10, 64)
			if expected := c.expected.Load(); known == expected && one.knows != expected {
				c.informed.Add(1)
			}
			one.knows = known
		}
		one.noteFlushed(*frames)
		one.done(frames)
		giveBack(frames)
		one.refill()
	}
}

// enter is the part of a subscribe request that is not HTTP.
func (c *crowd) enter(one *crowdClient, user *core.Record, key string) error {
	e := &core.RealtimeSubscribeRequestEvent{
		RequestEvent:  &core.RequestEvent{App: c.app, Auth: user},
		Client:        one.client,
		Subscriptions: []string{key},
	}
	e.Request = &http.Request{Header: http.Header{}}
	return c.app.OnRealtimeSubscribeRequest().Trigger(e, func(e *core.RealtimeSubscribeRequestEvent) error {
		e.Client.Set(apis.RealtimeClientAuthKey, e.Auth)
		e.Client.Unsubscribe()
		e.Client.Subscribe(e.Subscriptions...)
		return nil
	})
}

// settle waits until there is nothing left to tell and to write.
func (c *crowd) settle() {
	until(c.t, func() bool {
		c.p.presence.mu.Lock()
		flushes := slices.ContainsFunc(c.p.presence.endings, func(d *deadline) bool { return d.flush != "" })
		c.p.presence.mu.Unlock()
		stats := c.p.Stats()
		return !flushes && stats.QueuedMessages+stats.HistoryBacklog == 0
	})
}

// until is not require.Eventually, which is a millisecond late at best.
func until(t testing.TB, done func() bool) {
	t.Helper()
	for start := time.Now(); !done(); time.Sleep(200 * time.Microsecond) {
		if time.Since(start) > time.Minute {
			t.Fatal("it does not come to an end")
		}
	}
}

func cpuTime(t testing.TB) time.Duration {
	var r syscall.Rusage
	require.NoError(t, syscall.Getrusage(syscall.RUSAGE_SELF, &r))
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func heapInUse() int64 {
	var m runtime.MemStats
	for range 3 { // twice for what pools hold
		debug.FreeOSMemory()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// entryWay is how members come into one topic.
type entryWay struct {
	members int
	key     string
	over    time.Duration // at an even pace; 0: as fast as it goes
	singly  bool          // the app tells everybody of each one by a message
}

type entryCost struct {
	all, decided       time.Duration // until everybody knows, until everybody is in
	cpu                time.Duration
	frames             int64
	bytes, largest     int64 // of all, of the watcher with the most
	events, mostOfThem int64
}

// crowdHandlers is how many subscribe requests there are at once.
const crowdHandlers = 16

func (w entryWay) measure(c *crowd) (cost entryCost) {
	clients := c.open(w.members)
	c.expected.Store(int64(w.members))
	c.informed.Store(0)
	debug.FreeOSMemory()

	start, cpu := time.Now(), cpuTime(c.t)
	var (
		handlers errgroup.Group
		turn     sync.Mutex // a message for each member is one after the other
	)
	handlers.SetLimit(crowdHandlers)
	for i, one := range clients {
		if w.over > 0 {
			time.Sleep(time.Until(start.Add(w.over * time.Duration(i) / time.Duration(w.members))))
		}
		handlers.Go(func() error {
			if err := c.enter(one, c.users[i], w.key); err != nil || !w.singly {
				return err
			}
			turn.Lock()
			defer turn.Unlock()
			return c.p.Notify(c.app, topicOf(w.key), joinedAs(c.users[i]))
		})
	}
	require.NoError(c.t, handlers.Wait())
	cost.decided = time.Since(start)
	if topicOf(w.key)[:len(crowdOff)] != crowdOff {
		until(c.t, func() bool { return c.informed.Load() == int64(w.members) })
	}
	until(c.t, func() bool { return !slices.ContainsFunc(clients, (*crowdClient).waits) })
	cost.all = time.Since(start)
	c.settle() // what is put on the disk belongs to it too
	cost.cpu = cpuTime(c.t) - cpu

	for _, one := range clients {
		cost.frames += one.frames.Load()
		cost.bytes += one.bytes.Load()
		cost.events += one.events.Load()
		cost.mostOfThem = max(cost.mostOfThem, one.events.Load())
		cost.largest = max(cost.largest, one.bytes.Load())
	}
	c.leave()
	return cost
}

func (one *crowdClient) waits() bool {
	topics, _ := one.queued()
	return topics.messages > 0
}

// joinedAs is what an app would send for each member itself.
func joinedAs(user *core.Record) json.RawMessage {
	return mustMarshal(memberLine{ID: user.Id, Collection: "users", Since: time.Now(), Connections: 1}.wire())
}

// Members come into one topic, all of whom watch it.
func BenchmarkPresenceEnter(b *testing.B) {
	const members = 5000
	for _, way := range []struct {
		name string
		entryWay
	}{
		{"off", entryWay{members: members, key: crowdOff + "0" + crowdEnveloped}},
		{"at once", entryWay{members: members, key: crowdOn + "0" + crowdWatching}},
		{"off, in 5 s", entryWay{members: members, key: crowdOff + "0" + crowdEnveloped, over: 5 * time.Second}},
		{"in 5 s", entryWay{members: members, key: crowdOn + "0" + crowdWatching, over: 5 * time.Second}},
		// each told to those who are there: n*n/2 messages, here for a tenth of
		// the members
		{"a tenth, off", entryWay{members: members / 10, key: crowdOff + "0" + crowdEnveloped}},
		{"a tenth, told singly", entryWay{members: members / 10, key: crowdOff + "0" + crowdEnveloped, singly: true}},
		{"a tenth", entryWay{members: members / 10, key: crowdOn + "0" + crowdWatching}},
	} {
		b.Run(way.name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				c := newCrowd(b, way.members)
				b.StartTimer()
				cost := way.measure(c)
				b.StopTimer()
				c.close()
				b.StartTimer()
				n := float64(way.members)
				b.ReportMetric(float64(cost.events)/n, "events/watcher")
				b.ReportMetric(float64(cost.mostOfThem), "events/watcher-most")
				b.ReportMetric(float64(cost.bytes)/n, "B/watcher")
				b.ReportMetric(float64(cost.largest), "B/watcher-most")
				b.ReportMetric(float64(cost.frames), "frames")
				b.ReportMetric(cost.cpu.Seconds(), "cpu-s")
				b.ReportMetric(cost.decided.Seconds(), "s-in")
				b.ReportMetric(cost.all.Seconds(), "s-told")
			}
		})
	}
}

type topicsCost struct {
	join time.Duration // one
	heap int64         // of one topic with both members
}

// measureTopics lets two members into each of many topics.
func measureTopics(c *crowd, count int, key func(topic int) string) (cost topicsCost) {
	clients := c.open(2 * count)
	c.expected.Store(2)
	c.informed.Store(0)
	require.NoError(c.t, c.enter(c.open(1)[0], c.users[0], key(count))) // so that what is made once is there
	c.settle()

	before, start := heapInUse(), time.Now()
	for i, one := range clients {
		require.NoError(c.t, c.enter(one, c.users[i], key(i/2)))
	}
	cost.join = time.Since(start) / time.Duration(len(clients))
	if key(0)[:len(crowdOff)] != crowdOff {
		until(c.t, func() bool { return c.informed.Load() == int64(len(clients)) })
	}
	c.settle()
	cost.heap = (heapInUse() - before) / int64(count)
	runtime.KeepAlive(clients)
	c.leave()
	return cost
}

// Many topics with two members each, both of whom watch.
func BenchmarkPresenceTopics(b *testing.B) {
	const topics = 10_000
	for name, key := range map[string]func(int) string{
		"off": func(i int) string { return fmt.Sprint(crowdOff, i, crowdEnveloped) },
		"on":  func(i int) string { return fmt.Sprint(crowdOn, i, crowdWatching) },
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				c := newCrowd(b, 2*topics)
				b.StartTimer()
				cost := measureTopics(c, topics, key)
				b.StopTimer()
				c.close()
				b.StartTimer()
				b.ReportMetric(float64(cost.join)/1e3, "us/join")
				b.ReportMetric(float64(cost.heap), "B/topic")
			}
		})
	}
}

// measureMemory returns the heap of one member, without its client.
func measureMemory(c *crowd, members, perTopic int, prefix, options string) int64 {
	clients := c.open(members)
	enter := func(one *crowdClient, i, topic int) {
		// as a request finds it, so that no memory is shared with others
		user, err := c.app.FindRecordById("users", c.users[i].Id)
		require.NoError(c.t, err)
		require.NoError(c.t, c.enter(one, user, fmt.Sprint(prefix, topic, options)))
		one.Set(apis.RealtimeClientAuthKey, nil)
	}
	enter(c.open(1)[0], 0, -1) // so that what is made once is there
	c.settle()

	before := heapInUse()
	for i, one := range clients {
		enter(one, i, i/perTopic)
	}
	c.settle()
	heap := heapInUse() - before
	runtime.KeepAlive(clients)
	c.leave()
	return heap / int64(members)
}

// crowdModes are what a member can cost.
var crowdModes = []struct{ name, prefix, options string }{
	{"off", crowdOff, ""},
	{"on", crowdOn, ""},
	{"fields", crowdFields, ""},
	{"off-enveloped", crowdOff, crowdEnveloped},
	{"watching", crowdOn, crowdWatching},
}

// The heap of a member.
func BenchmarkPresenceMemory(b *testing.B) {
	const members = 10_000
	for _, perTopic := range []int{10, members} {
		b.Run(fmt.Sprintf("members=%d", perTopic), func(b *testing.B) {
			for b.Loop() {
				heap := map[string]int64{}
				for _, mode := range crowdModes {
					c := newCrowd(b, members)
					heap[mode.name] = measureMemory(c, members, perTopic, mode.prefix, mode.options)
					c.close()
					b.ReportMetric(float64(heap[mode.name]), mode.name+"-B/member")
				}
				b.ReportMetric(float64(heap["on"]-heap["off"]), "presence-B/member")
				b.ReportMetric(float64(heap["watching"]-heap["off-enveloped"]), "presence-and-watching-B/member")
			}
		})
	}
}

// measureSubscribe returns what a subscribe takes in each of the modes, in turn
// a few at a time: the median of the rounds.
func measureSubscribe(c *crowd, rounds, batch int) map[string]time.Duration {
	took := map[string][]time.Duration{}
	for round := range rounds {
		for _, mode := range crowdModes {
			clients := c.open(batch)
			start := time.Now()
			for i, one := range clients {
				require.NoError(c.t, c.enter(one, c.users[i], fmt.Sprint(mode.prefix, round, "-", i/10, mode.options)))
			}
			took[mode.name] = append(took[mode.name], time.Since(start)/time.Duration(batch))
			c.settle()
			c.leave()
		}
	}
	medians := map[string]time.Duration{}
	for name, list := range took {
		slices.Sort(list)
		medians[name] = list[len(list)/2]
	}
	return medians
}

// What presence adds to a subscribe: one key, decided and indexed.
func BenchmarkPresenceSubscribe(b *testing.B) {
	const batch = 500
	c := newCrowd(b, batch)
	for b.Loop() {
		for name, took := range measureSubscribe(c, 9, batch) {
			b.ReportMetric(float64(took)/1e3, name+"-us")
		}
	}
}

// The benchmarks above measure what they say.
func TestPresenceBenchmarks(t *testing.T) {
	const members = 40
	c := newCrowd(t, members)

	told := entryWay{members: members, key: crowdOn + "once" + crowdWatching}.measure(c)
	require.GreaterOrEqual(t, told.events, int64(members))
	require.Equal(t, told.frames, told.events+members, "and ready for each")
	paced := entryWay{members: members, key: crowdOn + "paced" + crowdWatching, over: 2 * flushPeriod}.measure(c)
	require.LessOrEqual(t, paced.mostOfThem, int64(paced.all/flushPeriod)+2)
	singly := entryWay{members: members, key: crowdOff + "singly" + crowdEnveloped, singly: true}.measure(c)
	require.GreaterOrEqual(t, singly.frames, int64(members*(members+1)/2+members), "each to those who are there, and ready for each")

	for _, key := range []string{crowdOn, crowdOff} {
		cost := measureTopics(c, members/2, func(i int) string { return fmt.Sprint(key, "pair", i, crowdWatching) })
		require.Positive(t, cost.join)
	}
	for _, mode := range crowdModes {
		require.NotZero(t, measureMemory(c, members, 10, mode.prefix+"memory", mode.options))
	}
	require.Len(t, measureSubscribe(c, 1, members), len(crowdModes))
}
