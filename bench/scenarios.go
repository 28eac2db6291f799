package main

import (
	"fmt"
	"strconv"
	"time"
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
