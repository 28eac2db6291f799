package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
)

// scenario is measured with each of its servers, which are new each time.
type scenario struct {
	name  string
	about string
	kinds []kind
	run   func(l *lab) ([]metric, error)
}

var (
	both = []kind{docsLoop, plugin}
	all  = []kind{docsLoop, records, plugin}
)

const roomCount = 1000

func scenarios() []scenario {
	list := []scenario{
		{"burst-http", "1,000 subscribers, 16 HTTP publishers at once, 128 B", all, burstHTTP},
		{"burst-loop", "1,000 subscribers, server code sends 200 messages of 128 B in a loop, again and again", both, burstLoop},
		{"closed-loop", "1,000 subscribers, one HTTP publisher, which sends the next message when all have the one before", both, closedLoop},
		{"paced-10", "1,000 subscribers, 10 messages a second", both, paced(10)},
		{"paced-50", "1,000 subscribers, 50 messages a second", all, paced(50)},
		{"sparse", "100 subscribers among 4,000 connections, 100 messages a second", both, sparse},
		{"many-topics", "5,000 clients on 1,000 topics, 16 HTTP publishers to random ones", both, manyTopics},
		{"stalled-0", "1,000 subscribers, 20 messages of 128 B a second", both, stalled(0)},
		{"stalled-1", "the same, and 1 more that has stopped reading", both, stalled(1)},
		{"stalled-1%", "the same, and 10 more that have stopped reading", both, stalled(10)},
		{"stalled-memory", "1,000 clients that have stopped reading, and a publisher of 4 KB messages that never pauses", []kind{plugin}, stalledMemory(4 << 10)},
		{"large-20", "200 subscribers, 20 messages of 20 KB a second", both, large(20 << 10)},
		{"large-60", "200 subscribers, 20 messages of 60 KB a second", both, large(60 << 10)},
		{"storm", "5,000 signed-in clients come at once, each to five topics, which topics guards by a rule that reads a collection", both, storm},
	}
	for _, n := range []int{100, 1000, 10_000} {
		list = append(list, scenario{
			"growth-" + strconv.Itoa(n), fmt.Sprintf("10 subscribers among %d connections, 200 messages a second", n), both, growth(n),
		})
	}
	histories := []kind{plugin, inMemory, onDisk}
	list = append(list,
		scenario{"history-publish", "100 subscribers, 500 messages of 128 B a second, with a history of 1,000", histories, historyPublish},
		scenario{"history-20000", "1 subscriber to each of 10 topics, 20,000 messages of 128 B a second through Notify", histories, historySustained},
		scenario{"history-replay", "500 clients come, each to a topic of its own with 100 messages, which those with a history replay", histories, historyReplay},
		scenario{"history-recovery", "5,000 clients come back at once, each with 20 messages missed", []kind{inMemory, onDisk}, historyRecovery},
	)
	return append(list, scenario{"memory", "5,000 connections with one topic each", both, memory})
}

func same(topic string) func(int) string { return func(int) string { return topic } }

// warm sends a little before it is measured.
func (l *lab) warm() error {
	_, err := l.measure(func(phase uint32) (published, error) {
		return l.loop(phase, loopParams{Prefix: "open/", Topics: 1, Count: 20, Size: 128, Every: int64(10 * time.Millisecond)})
	})
	return err
}

func (l *lab) openWarm(n int, topic func(int) string) error {
	if err := l.open(n, topic); err != nil {
		return err
	}
	return l.warm()
}

func burstHTTP(l *lab) ([]metric, error) {
	if err := l.openWarm(l.scaled(1000), same("open/0")); err != nil {
		return nil, err
	}
	return l.measure(func(phase uint32) (published, error) { return l.flood(phase, 16, 1, 128) })
}

// burstLoop is measured as one phase of many bursts.
func burstLoop(l *lab) ([]metric, error) {
	if err := l.openWarm(l.scaled(1000), same("open/0")); err != nil {
		return nil, err
	}
	const count = 200
	var bursts []burst
	for end := time.Now().Add(l.duration); time.Now().Before(end); {
		metrics, err := l.measure(func(phase uint32) (published, error) {
			return l.loop(phase, loopParams{Prefix: "open/", Topics: 1, Count: count, Size: 128})
		})
		if err != nil {
			return nil, err
		}
		bursts = append(bursts, metrics)
	}
	return medians(bursts), nil
}

type burst = []metric

func closedLoop(l *lab) ([]metric, error) {
	if err := l.openWarm(l.scaled(1000), same("open/0")); err != nil {
		return nil, err
	}
	return l.measure(func(phase uint32) (published, error) { return l.pingPong(phase, 128) })
}

func (l *lab) paced(perSecond, size int) ([]metric, error) {
	return l.measure(func(phase uint32) (published, error) {
		return l.loop(phase, loopParams{
			Prefix: "open/", Topics: 1, Size: size,
			Count: max(5, int(l.duration.Seconds()*float64(perSecond))),
			Every: int64(time.Second) / int64(perSecond),
		})
	})
}

func paced(perSecond int) func(*lab) ([]metric, error) {
	return func(l *lab) ([]metric, error) {
		if err := l.openWarm(l.scaled(1000), same("open/0")); err != nil {
			return nil, err
		}
		return l.paced(perSecond, 128)
	}
}

// some gives the first few the topic, and all others one of their own.
func some(few int) func(int) string {
	return func(i int) string {
		if i < few {
			return "open/0"
		}
		return "open/other" + strconv.Itoa(i)
	}
}

func sparse(l *lab) ([]metric, error) {
	if err := l.openWarm(l.scaled(4000), some(l.scaled(100))); err != nil {
		return nil, err
	}
	return l.paced(100, 128)
}

func growth(connections int) func(*lab) ([]metric, error) {
	return func(l *lab) ([]metric, error) {
		if err := l.openWarm(max(10, l.scaled(connections)), some(10)); err != nil {
			return nil, err
		}
		return l.paced(200, 128)
	}
}

func manyTopics(l *lab) ([]metric, error) {
	clients, count := l.scaled(5000), l.scaled(1000)
	if err := l.openWarm(clients, func(i int) string { return "open/" + strconv.Itoa(i%count) }); err != nil {
		return nil, err
	}
	return l.measure(func(phase uint32) (published, error) { return l.flood(phase, 16, count, 128) })
}

// stalled first fills the sockets of those that do not read.
func stalled(count int) func(*lab) ([]metric, error) {
	return func(l *lab) ([]metric, error) {
		if err := l.openWarm(l.scaled(1000), same("open/0")); err != nil {
			return nil, err
		}
		_, err := l.block(count, "open/0")
		if l.kind != plugin && errors.Is(err, context.DeadlineExceeded) {
			return []metric{{hangs, 1}}, nil
		}
		if err != nil {
			return nil, err
		}
		return l.paced(20, 128)
	}
}

// hangs is the metric of a server that does not come to an end.
const hangs = "publishing hangs for good"

// block opens connections that subscribe to the topic and to another one, and
// publishes to the other one until they have a queue.
func (l *lab) block(count int, topic string) ([]*subscriber, error) {
	if count == 0 {
		return nil, nil
	}
	blocked, err := l.stall(count, topic, "open/fill")
	if err != nil {
		return nil, err
	}

	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for range 200 {
		if err := l.publishContext(ctx, "open/fill", message{}.append(nil, makePad(60<<10))); err != nil {
			return nil, err
		}
		time.Sleep(10 * time.Millisecond)
		u, err := l.usage(false)
		if err != nil {
			return nil, err
		}
		if u.Topics != nil && u.Topics.QueuedMessages > 2*count {
			return blocked, nil
		}
	}
	return nil, errors.New("the sockets take everything")
}

func large(size int) func(*lab) ([]metric, error) {
	return func(l *lab) ([]metric, error) {
		if err := l.openWarm(l.scaled(200), same("open/0")); err != nil {
			return nil, err
		}
		return l.paced(20, size)
	}
}

// storm measures connecting and subscribing, then checks that all subscriptions
// are there.
func storm(l *lab) ([]metric, error) {
	clients := l.scaled(5000)
	var tokens map[string]string
	if err := l.post("prepare", map[string][]string{"users": {strconv.Itoa(clients)}}, nil, &tokens); err != nil {
		return nil, err
	}
	before, err := l.usage(true)
	if err != nil {
		return nil, err
	}

	opened := make([]*subscriber, clients)
	var group errgroup.Group
	group.SetLimit(512)
	start, own := time.Now(), cpuTime()
	err = l.profiled(func() error {
		for i := range clients {
			group.Go(func() (err error) {
				if opened[i], err = connect(l.addr, 0, &l.received); err != nil {
					return err
				}
				rooms := make([]string, 5)
				for r := range rooms {
					rooms[r] = "room/" + strconv.Itoa((i*7+r*131)%roomCount)
				}
				return l.subscribe(opened[i], tokens["user"+strconv.Itoa(i)], rooms...)
			})
		}
		return group.Wait()
	})
	took := time.Since(start)
	own = cpuTime() - own
	for _, s := range opened {
		if s != nil {
			l.subscribers = append(l.subscribers, s)
		}
	}
	if err != nil {
		return nil, err
	}
	after, err := l.usage(false)
	if err != nil {
		return nil, err
	}

	checked, err := l.measure(func(phase uint32) (published, error) {
		return l.loop(phase, loopParams{Prefix: "room/", Topics: roomCount, Count: 2000, Size: 128, Every: int64(time.Millisecond)})
	})
	if err != nil {
		return nil, err
	}
	metrics := []metric{
		{"until all are subscribed, s", took.Seconds()},
		{"server CPU per client, us", micros(time.Duration(after.CPU-before.CPU)) / float64(clients)},
		{"load generator's CPU / server's", own.Seconds() / time.Duration(after.CPU-before.CPU).Seconds()},
	}
	for _, m := range checked {
		if m.name == "lost" || m.name == "out of order" {
			metrics = append(metrics, m)
		}
	}
	return metrics, nil
}

func memory(l *lab) ([]metric, error) {
	if err := l.warm(); err != nil {
		return nil, err
	}
	before, err := l.usage(true)
	if err != nil {
		return nil, err
	}
	clients := l.scaled(5000)
	if err := l.open(clients, same("open/0")); err != nil {
		return nil, err
	}
	idle, err := l.settled()
	if err != nil {
		return nil, err
	}
	if _, err = l.measure(func(phase uint32) (published, error) {
		return l.loop(phase, loopParams{Prefix: "open/", Topics: 1, Count: 100, Size: 128})
	}); err != nil {
		return nil, err
	}
	after, err := l.settled()
	if err != nil {
		return nil, err
	}
	n := float64(clients)
	metrics := []metric{
		{"heap and stacks per idle connection, B", float64(idle.Heap+idle.Stacks-before.Heap-before.Stacks) / n},
		{"resident memory per idle connection, B", float64(idle.Resident-before.Resident) / n},
		{"kept after a burst, B per connection", float64(after.Heap+after.Stacks-idle.Heap-idle.Stacks) / n},
	}
	if l.kind != plugin {
		return metrics, nil // it would hang
	}

	const queued = 500
	blocked, err := l.block(l.scaled(200), "open/blocked")
	if err != nil {
		return nil, err
	}
	before, err = l.settled()
	if err != nil {
		return nil, err
	}
	for range queued {
		if err := l.publish("open/blocked", message{}.append(nil, "")); err != nil {
			return nil, err
		}
	}
	after, err = l.settled()
	if err != nil {
		return nil, err
	}
	return append(metrics, metric{"heap per queued message, B", float64(after.Heap-before.Heap) / float64(queued*len(blocked))}), nil
}

// settled is the usage after the server has come to rest.
func (l *lab) settled() (u usage, err error) {
	for range 3 {
		time.Sleep(200 * time.Millisecond)
		if u, err = l.usage(true); err != nil {
			return u, err
		}
	}
	return u, nil
}

// stalledMemory goes on until the write deadline has closed all clients.
func stalledMemory(size int) func(*lab) ([]metric, error) {
	return func(l *lab) ([]metric, error) { return l.stalledMemory(size) }
}

func (l *lab) stalledMemory(size int) ([]metric, error) {
	if err := l.warm(); err != nil {
		return nil, err
	}
	before, err := l.settled()
	if err != nil {
		return nil, err
	}
	clients := l.scaled(1000)
	if _, err := l.stall(clients, "open/0"); err != nil {
		return nil, err
	}
	connected, err := l.usage(true)
	if err != nil {
		return nil, err
	}

	var (
		peak      int64
		published int
		stats     = *connected.Topics
	)
	for end := time.Now().Add(12 * writeTimeout); stats.SlowConsumers+stats.WriteTimeouts < uint64(clients); {
		if time.Now().After(end) {
			return nil, fmt.Errorf("%d of %d clients are still there", stats.Connections, clients)
		}
		for range 10 {
			if err := l.publish("open/0", message{}.append(nil, makePad(size))); err != nil {
				return nil, err
			}
			published++
		}
		u, err := l.usage(false)
		if err != nil {
			return nil, err
		}
		peak, stats = max(peak, u.Heap), *u.Topics
	}
	after, err := l.settled()
	if err != nil {
		return nil, err
	}
	return []metric{
		{"messages published", float64(published)},
		{"closed as slow consumers", float64(stats.SlowConsumers)},
		{"closed by the write deadline", float64(stats.WriteTimeouts)},
		{"heap before, MB", megabytes(before.Heap)},
		{"heap with all connected, MB", megabytes(connected.Heap)},
		{"largest heap, MB", megabytes(peak)},
		{"heap after they were closed, MB", megabytes(after.Heap)},
		{"connections left", float64(after.Connections)},
	}, nil
}

func historyPublish(l *lab) ([]metric, error) {
	if err := l.openWarm(l.scaled(100), same("open/0")); err != nil {
		return nil, err
	}
	return l.paced(500, 128)
}

func historySustained(l *lab) ([]metric, error) {
	const topics = 10
	if err := l.openWarm(topics, func(i int) string { return "open/" + strconv.Itoa(i) }); err != nil {
		return nil, err
	}
	metrics, err := l.measure(func(phase uint32) (published, error) {
		return l.loop(phase, loopParams{
			Prefix: "open/", Topics: topics, Size: 128,
			Count: max(1000, int(l.duration.Seconds()*20_000)),
			Every: int64(time.Second / 20_000),
		})
	})
	if err != nil {
		return nil, err
	}
	u, err := l.usage(false)
	if err != nil {
		return nil, err
	}
	return append(metrics, metric{"not yet on the disk at the end", float64(u.Topics.HistoryBacklog)}), nil
}

// keyed adds the options to a topic, as the SDK does.
func keyed(topic, query string) string {
	return topic + "?options=" + url.QueryEscape(`{"query":{`+query+`}}`)
}

// connectAll measures clients that connect and subscribe at once, until they
// have everything.
func (l *lab) connectAll(clients int, key func(i int) string, each int64) ([]metric, error) {
	before, err := l.usage(true)
	if err != nil {
		return nil, err
	}
	l.received.expect(int64(clients) * each)
	own, start := cpuTime(), time.Now()
	err = l.profiled(func() error {
		if err := l.open(clients, key); err != nil {
			return err
		}
		if each > 0 {
			l.received.wait(2 * time.Second)
		}
		return nil
	})
	took := time.Since(start)
	if err != nil {
		return nil, err
	}
	own = cpuTime() - own
	after, err := l.usage(false)
	if err != nil {
		return nil, err
	}
	return []metric{
		{"until all are through, s", took.Seconds()},
		{"server CPU per client, us", micros(time.Duration(after.CPU-before.CPU)) / float64(clients)},
		{"load generator's CPU / server's", own.Seconds() / time.Duration(after.CPU-before.CPU).Seconds()},
	}, nil
}

func historyReplay(l *lab) ([]metric, error) {
	clients := l.scaled(500)
	const messages = 100
	_, err := l.measure(func(phase uint32) (p published, err error) {
		p = published{topics: map[string]int64{}}
		for i := range clients {
			for n := range messages {
				m := message{phase: phase, n: uint32(n + 1)}
				if err := l.publish("open/"+strconv.Itoa(i), m.append(nil, makePad(128))); err != nil {
					return p, err
				}
			}
		}
		return p, nil
	})
	if err != nil {
		return nil, err
	}
	each := int64(messages)
	if l.kind == plugin {
		each = 0
	}
	metrics, err := l.connectAll(clients, func(i int) string { return keyed("open/"+strconv.Itoa(i), `"replay":100`) }, each)
	return append(metrics, l.checkEach(each)...), err
}

// checkEach checks that every client has that many messages of this phase, once
// and in order.
func (l *lab) checkEach(each int64) []metric {
	lost, late := 0.0, 0.0
	for _, s := range l.subscribers {
		r := s.phase(l.phase)
		lost += float64(max(0, each-int64(r.count))) + float64(r.missing)
		late += float64(r.late) + float64(max(0, int64(r.count)-each))
	}
	return []metric{{"lost", lost}, {"out of order", late}}
}

func historyRecovery(l *lab) ([]metric, error) {
	clients := l.scaled(5000)
	const topics, messages = 100, 20
	key := func(i int) string {
		return keyed("open/"+strconv.Itoa(i%topics), `"resume":"client`+strconv.Itoa(i)+`"`)
	}
	if err := l.open(clients, key); err != nil {
		return nil, err
	}
	for _, s := range l.subscribers {
		s.close()
	}
	l.subscribers = nil
	for range 100 {
		if u, err := l.usage(false); err != nil {
			return nil, err
		} else if u.Connections == 0 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}

	l.phase++
	for topic := range topics {
		for n := range messages {
			m := message{phase: l.phase, n: uint32(n + 1)}
			if err := l.publish("open/"+strconv.Itoa(topic), m.append(nil, makePad(128))); err != nil {
				return nil, err
			}
		}
	}
	metrics, err := l.connectAll(clients, key, messages)
	return append(metrics, l.checkEach(messages)...), err
}

func megabytes(n int64) float64 { return float64(n) / (1 << 20) }
