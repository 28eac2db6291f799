package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

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
