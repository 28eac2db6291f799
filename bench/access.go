package main

import (
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
)

const roomCount = 1000

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
