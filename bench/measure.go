package main

import (
	"bytes"
	"context"
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"net/url"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// published is what was sent in a phase, and how long sending took.
type published struct {
	topics   map[string]int64 // messages
	p50, p99 time.Duration
}

func (p published) messages() (n int64) {
	for _, sent := range p.topics {
		n += sent
	}
	return n
}

// metric is a measured figure.
type metric struct {
	name  string
	value float64
}

// measure publishes, waits for all receipts, and checks them.
func (l *lab) measure(publish func(phase uint32) (published, error)) ([]metric, error) {
	l.phase++
	debug.FreeOSMemory()
	before, err := l.usage(false)
	if err != nil {
		return nil, err
	}
	own, start, had := cpuTime(), time.Now(), l.received.n.Load()

	var p published
	err = l.profiled(func() (err error) {
		p, err = publish(l.phase)
		if err != nil {
			return err
		}
		l.received.expect(l.expected(p) - (l.received.n.Load() - had))
		l.received.wait(2 * time.Second)
		return nil
	})
	if err != nil {
		return nil, err
	}
	own = cpuTime() - own
	after, err := l.usage(false)
	if err != nil {
		return nil, err
	}

	seen := l.check(p)
	elapsed := time.Unix(0, seen.newest).Sub(start)
	cpu := time.Duration(after.CPU - before.CPU)
	return []metric{
		{"deliveries a second", float64(seen.count) / elapsed.Seconds()},
		{"server CPU per delivery, us", micros(cpu) / float64(max(1, seen.count))},
		{"server CPU per publish, us", micros(cpu) / float64(max(1, p.messages()))},
		{"publish to receipt p50, ms", millis(percentile(seen.took, 50))},
		{"publish to receipt p99, ms", millis(percentile(seen.took, 99))},
		{"publish call p50, us", micros(p.p50)},
		{"publish call p99, us", micros(p.p99)},
		{"lost", float64(seen.lost)},
		{"out of order", float64(seen.late)},
		{"subscribers with another order", float64(seen.others)},
		{"load generator's CPU / server's", own.Seconds() / cpu.Seconds()},
		{"machine busy, %", 100 * (own + cpu).Seconds() / elapsed.Seconds() / float64(runtime.NumCPU())},
	}, nil
}

func (l *lab) expected(p published) (n int64) {
	for _, s := range l.subscribers {
		n += s.expected(p)
	}
	return n
}

func (s *subscriber) expected(p published) (n int64) {
	if s.stalled != nil {
		return 0
	}
	for _, key := range s.topics {
		topic, _, _ := strings.Cut(key, "?")
		n += p.topics[topic]
	}
	return n
}

// seen is what all subscribers received together.
type seen struct {
	count  int64
	newest int64
	lost   int64
	late   int64
	others int64 // subscribers that disagree with the first one of their topic
	took   []time.Duration
}

func (l *lab) check(p published) seen {
	all := seen{newest: time.Now().UnixNano()}
	if len(l.subscribers) > 0 {
		all.newest = 0
	}
	orders := map[string]uint64{}
	for _, s := range l.subscribers {
		if s.stalled != nil {
			continue
		}
		r := s.phase(l.phase)
		all.count += int64(r.count)
		all.late += int64(r.late)
		all.newest = max(all.newest, r.newest)
		all.took = append(all.took, r.took...)
		// a repeated message does not make up for a lost one
		all.lost += max(s.expected(p)-int64(r.count), int64(r.missing-r.late), 0)

		if len(s.topics) != 1 {
			continue
		}
		if first, ok := orders[s.topics[0]]; !ok {
			orders[s.topics[0]] = r.order
		} else if first != r.order {
			all.others++
		}
	}
	slices.Sort(all.took)
	return all
}

// loop has the server send count messages by itself, to random ones of the
// numbered topics.
func (l *lab) loop(phase uint32, p loopParams) (published, error) {
	p.Phase = phase
	var answer loopAnswer
	if err := l.post("loop", nil, p, &answer); err != nil {
		return published{}, err
	}
	sent := published{topics: map[string]int64{}, p50: time.Duration(answer.P50), p99: time.Duration(answer.P99)}
	for i, n := range answer.Sent {
		sent.topics[p.Prefix+strconv.Itoa(i)] = int64(n)
	}
	return sent, nil
}

// flood has HTTP publishers send to random ones of the topics open/0 and so
// on, each its next message when the one before was answered.
func (l *lab) flood(phase uint32, publishers, topics, size int) (published, error) {
	var (
		group errgroup.Group
		mu    sync.Mutex
		all   = published{topics: map[string]int64{}}
		took  []time.Duration
		end   = time.Now().Add(l.duration)
		pad   = makePad(size)
	)
	for i := range publishers {
		group.Go(func() error {
			sent := make([]uint32, topics)
			var own []time.Duration
			for time.Now().Before(end) {
				t := rand.IntN(topics)
				sent[t]++
				m := message{phase: phase, publisher: uint32(i)<<16 | uint32(t), n: sent[t], at: time.Now().UnixNano()}
				if err := l.publish("open/"+strconv.Itoa(t), m.append(nil, pad)); err != nil {
					return err
				}
				own = append(own, time.Duration(time.Now().UnixNano()-m.at))
			}
			mu.Lock()
			defer mu.Unlock()
			for t, n := range sent {
				all.topics["open/"+strconv.Itoa(t)] += int64(n)
			}
			took = append(took, own...)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return published{}, err
	}
	slices.Sort(took)
	all.p50, all.p99 = percentile(took, 50), percentile(took, 99)
	return all, nil
}

// pingPong sends the next message when all have received the one before.
func (l *lab) pingPong(phase uint32, size int) (published, error) {
	var (
		sent int64
		took []time.Duration
		end  = time.Now().Add(l.duration)
		pad  = makePad(size)
	)
	for time.Now().Before(end) {
		sent++
		m := message{phase: phase, n: uint32(sent), at: time.Now().UnixNano()}
		l.received.expect(int64(len(l.subscribers)))
		if err := l.publish("open/0", m.append(nil, pad)); err != nil {
			return published{}, err
		}
		took = append(took, time.Duration(time.Now().UnixNano()-m.at))
		l.received.wait(2 * time.Second)
	}
	slices.Sort(took)
	return published{topics: map[string]int64{"open/0": sent}, p50: percentile(took, 50), p99: percentile(took, 99)}, nil
}

func (l *lab) publish(topic string, data json.RawMessage) error {
	return l.publishContext(context.Background(), topic, data)
}

func (l *lab) publishContext(ctx context.Context, topic string, data json.RawMessage) error {
	query := url.Values{"topic": {topic}}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+l.addr+"/bench/publish?"+query.Encode(), bytes.NewReader(data))
	if err != nil {
		return err
	}
	return l.do(request, nil)
}

// percentile expects sorted values.
func percentile(sorted []time.Duration, p int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[(len(sorted)-1)*p/100]
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
func millis(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }
