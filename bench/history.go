package main

import (
	"net/url"
	"strconv"
	"time"
)

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
