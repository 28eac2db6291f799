package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pbtopics/topics/internal/testserver"
)

type options struct {
	seed        uint64
	duration    time.Duration
	subscribers int
}

// stress is one run.
type stress struct {
	options
	dir     string
	address string
	http    *http.Client
	truth   *truth
	random  *rand.Rand

	server *testserver.Process
	ending atomic.Bool // no more accidents: everything must arrive
	ended  atomic.Bool

	evicting atomic.Bool

	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

func (r *stress) calm() bool { return r.ending.Load() }
func (r *stress) over() bool { return r.ended.Load() }

func (r *stress) track(c net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conns[c] = struct{}{}
	if r.ended.Load() {
		_ = c.Close()
	}
}

func (r *stress) untrack(c net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, c)
}

// figures are what a run has seen.
type figures struct {
	seed                                                                             uint64
	published, delivered, repeated, gaps, recovered, cuts, stalls, revoked, restarts int64
	faults                                                                           []string
}

func (f figures) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d messages published, %d delivered, %d of them repeated with their id\n", f.published, f.delivered, f.repeated)
	fmt.Fprintf(&b, "%d connections cut, %d stalled, %d restarts, %d refusals, %d recoveries, %d gaps told\n", f.cuts, f.stalls, f.restarts, f.revoked, f.recovered, f.gaps)
	fmt.Fprintf(&b, "%d faults (repeat with -seed %d)", len(f.faults), f.seed)
	for _, fault := range f.faults {
		b.WriteString("\n  " + fault)
	}
	return b.String()
}

func run(o options) (f figures, err error) {
	f.seed = o.seed
	dir, err := os.MkdirTemp("", "topics-stress-")
	if err != nil {
		return f, err
	}
	defer os.RemoveAll(dir)

	r := &stress{
		options: o, dir: dir, truth: newTruth(), address: "127.0.0.1:0",
		random: rand.New(rand.NewPCG(o.seed, 1)),
		http:   &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64}},
		conns:  map[net.Conn]struct{}{},
	}
	if err := r.start(); err != nil {
		return f, err
	}
	defer func() { r.server.Kill() }()
	r.address = r.server.Address // and the same after a restart

	tokens := map[string]string{}
	if err := r.post("/stress/tokens", "", `{"count":`+strconv.Itoa(o.subscribers)+`}`, &tokens); err != nil {
		return f, err
	}

	// how the topics are shared out
	names := []string{"many/1", "many/2", "few/1", "brief/1"}
	var subscribers []*subscriber
	for i := range o.subscribers {
		s := &subscriber{
			run: r, user: "user" + strconv.Itoa(i), token: tokens["user"+strconv.Itoa(i)], topic: names[i%len(names)],
			ids: map[int]string{}, skipped: map[int]bool{}, random: rand.New(rand.NewPCG(o.seed, uint64(i)+2)),
		}
		switch i / len(names) % 3 {
		case 0, 1:
			s.resume = fmt.Sprint("r", i)
		case 2:
			s.replay = i % 5
		}
		if err := r.member(s, true); err != nil {
			return f, err
		}
		subscribers = append(subscribers, s)
	}

	var living, publishing sync.WaitGroup
	for _, s := range subscribers {
		living.Go(s.live)
	}
	for _, topic := range names {
		publishing.Go(func() { r.publishTo(topic) })
	}

	r.accidents(subscribers)

	// from here on everything must come through
	r.ending.Store(true)
	publishing.Wait()
	for _, s := range subscribers {
		if err := r.member(s, true); err != nil {
			return f, err
		}
	}
	r.settle(subscribers)

	r.ended.Store(true)
	r.mu.Lock()
	for c := range r.conns {
		_ = c.Close()
	}
	r.mu.Unlock()
	living.Wait()

	t := r.truth
	f = figures{
		seed: o.seed, published: t.published.Load(), delivered: t.delivered.Load(), repeated: t.repeated.Load(), gaps: t.gaps.Load(),
		recovered: t.recovered.Load(), cuts: t.cuts.Load(), stalls: t.stalls.Load(), revoked: t.revoked.Load(), restarts: t.restarts.Load(), faults: t.faults,
	}
	if len(f.faults) > 0 {
		return f, fmt.Errorf("%d faults", len(f.faults))
	}
	return f, nil
}

// publishTo publishes until the accidents are over, and a last message then.
func (r *stress) publishTo(topic string) {
	random := rand.New(rand.NewPCG(r.seed, uint64(len(topic))<<32))
	for !r.calm() {
		r.publish(topic)
		time.Sleep(time.Duration(random.IntN(8)) * time.Millisecond)
	}
}

func (r *stress) publish(topic string) {
	n := r.truth.begin(topic)
	if err := r.post("/stress/publish", "", fmt.Sprintf(`{"topic":%q,"n":%d}`, topic, n), nil); err == nil {
		r.truth.answer(topic, n)
	} else {
		time.Sleep(20 * time.Millisecond)
	}
}

// accidents happen for the run's duration.
func (r *stress) accidents(subscribers []*subscriber) {
	end := time.Now().Add(r.duration)
	restart := time.Now().Add(r.duration / 4)
	for i := 0; time.Now().Before(end); i++ {
		s := subscribers[r.random.IntN(len(subscribers))]
		if err := r.member(s, false); err == nil {
			time.Sleep(time.Duration(r.random.IntN(60)) * time.Millisecond)
			_ = r.member(s, true) // else at the end
		}
		if r.random.IntN(20) == 0 {
			// fill the limit of topics, so that the others have to go
			r.evicting.Store(true)
			for k := range maxLogs {
				r.publish(fmt.Sprintf("evict/%d", k))
			}
		}
		if time.Now().After(restart) {
			restart = time.Now().Add(r.duration / 4)
			r.truth.restarts.Add(1)
			r.restart(i%2 == 0)
		}
	}
}

func (r *stress) member(s *subscriber, on bool) error {
	if on {
		s.mu.Lock()
		s.removed = time.Time{}
		s.mu.Unlock()
	}
	body, err := json.Marshal(map[string]any{"user": s.user, "topic": s.topic, "on": on})
	if err != nil {
		return err
	}
	if err := r.post("/stress/member", "", string(body), nil); err != nil {
		return err
	}
	if !on {
		s.mu.Lock()
		s.removed = time.Now()
		s.mu.Unlock()
	}
	return nil
}

// settle publishes a last message to each topic and waits until all have it.
func (r *stress) settle(subscribers []*subscriber) {
	deadline := time.Now().Add(20 * time.Second)
	for _, s := range subscribers {
		for {
			before := r.truth.delivered.Load()
			r.publish(s.topic)
			time.Sleep(5 * time.Millisecond)
			if newest := r.truth.newest(s.topic); s.has(newest) {
				break
			}
			if time.Now().After(deadline) {
				r.truth.fault("%s of %s does not receive any more (%d deliveries before)", s.user, s.topic, before)
				break
			}
		}
	}
}

func (r *stress) start() error {
	server, err := testserver.Start(serveEnv+"="+r.dir, addressEnv+"="+r.address)
	if err != nil {
		return err
	}
	r.server = server
	return nil
}

func (r *stress) restart(clean bool) {
	if clean {
		r.server.Stop()
	} else {
		r.truth.mu.Lock()
		r.truth.kills = append(r.truth.kills, time.Now())
		r.truth.mu.Unlock()
		r.server.Kill()
	}
	if err := r.start(); err != nil {
		r.truth.fault("the server does not start again: %v", err)
	}
}

func (r *stress) post(path, token, body string, answer any) error {
	request, err := http.NewRequest(http.MethodPost, "http://"+r.address+path, bytes.NewReader([]byte(body)))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Authorization", token)
	return testserver.Do(r.http, request, answer)
}
