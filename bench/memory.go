package main

import "time"

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

func megabytes(n int64) float64 { return float64(n) / (1 << 20) }
