package main

import (
	"strconv"
	"time"
)

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

func large(size int) func(*lab) ([]metric, error) {
	return func(l *lab) ([]metric, error) {
		if err := l.openWarm(l.scaled(200), same("open/0")); err != nil {
			return nil, err
		}
		return l.paced(20, size)
	}
}
