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
	burners     int
	loses       time.Duration // see killLoses
}

// overlap is the server's ResumeOverlap: for so long this process may stop
// reading, which it does when it is starved.
func (o options) overlap() time.Duration {
	if o.burners > 0 {
		return 10 * time.Second
	}
	return 2 * time.Second
}

// stress is one run.
type stress struct {
	options
	dir     string
	address string
	http    *http.Client
	truth   *truth
	crowd   *crowd
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
	presence, refused                                                                int64
	faults                                                                           []string
}

func (f figures) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d messages published, %d delivered, %d of them repeated with their id\n", f.published, f.delivered, f.repeated)
	fmt.Fprintf(&b, "%d events about members, %d times they were refused\n", f.presence, f.refused)
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
		options: o, dir: dir, truth: newTruth(), crowd: newCrowd(o.loses), address: "127.0.0.1:0",
		random: rand.New(rand.NewPCG(o.seed, 1)),
		http:   &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64}},
		conns:  map[net.Conn]struct{}{},
	}
	if err := r.start(); err != nil {
		return f, err
	}
	defer func() { r.server.Kill() }()
	r.address = r.server.Address // and the same after a restart
	extinguish, err := r.startBurners()
	if err != nil {
		return f, err
	}
	defer extinguish()

	tokens := map[string]string{}
	if err := r.post("/stress/tokens", "", `{"count":`+strconv.Itoa(o.subscribers)+`}`, &tokens); err != nil {
		return f, err
	}

	var subscribers []*subscriber
	for i := range o.subscribers {
		s := r.subscriber(i, tokens)
		if err := r.restoreRights(s); err != nil {
			return f, err
		}
		subscribers = append(subscribers, s)
	}

	var living, publishing sync.WaitGroup
	for _, s := range subscribers {
		living.Go(s.live)
	}
	for _, topic := range topicNames {
		publishing.Go(func() { r.publishTo(topic) })
	}

	r.accidents(subscribers)

	// from here on everything must come through
	r.ending.Store(true)
	publishing.Wait()
	for _, s := range subscribers {
		if err := r.restoreRights(s); err != nil {
			return f, err
		}
	}
	r.settle(subscribers)
	r.settleMembers(subscribers)

	r.ended.Store(true)
	r.mu.Lock()
	for c := range r.conns {
		_ = c.Close()
	}
	r.mu.Unlock()
	living.Wait()

	t := r.truth
	f = figures{
		presence: t.presence.Load(), refused: t.refused.Load(),
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
	var longer sync.WaitGroup
	for i := 0; time.Now().Before(end); i++ {
		s := subscribers[r.random.IntN(len(subscribers))]
		pause := time.Duration(r.random.IntN(60)) * time.Millisecond
		of := r.accident(s, r.random.IntN(5))
		switch {
		case of == nil:
			time.Sleep(pause)
		case r.random.IntN(4) == 0:
			longer.Go(func() { of(within + 50*pause) })
		default:
			of(pause)
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
	longer.Wait()
}

// accident returns one that may befall somebody, or nil: it sets a state, gets
// another name, or loses a right for a while.
func (r *stress) accident(s *subscriber, kind int) func(time.Duration) {
	if kind == 0 && s.states {
		return func(time.Duration) { _ = s.setState() } // it may be away
	}
	if s.user == "" {
		return nil
	}
	p := s.person
	right, collection := &p.member, "members"
	switch {
	case kind == 1:
		return func(time.Duration) { _ = r.rename(s) } // at the end again
	case s.topic == lobby:
		return nil
	case kind == 2 && s.sees:
		right, collection = &p.viewer, "viewers"
	}
	return func(pause time.Duration) {
		if !p.accident.TryLock() {
			return
		}
		defer p.accident.Unlock()
		if err := r.give(s, right, collection, false); err == nil {
			time.Sleep(pause)
			_ = r.give(s, right, collection, true) // else at the end
		}
	}
}

// give gives or takes a right.
func (r *stress) give(s *subscriber, right *right, collection string, on bool) error {
	return r.crowd.change(s.person, right, on, func() error {
		body, err := json.Marshal(map[string]any{"collection": collection, "user": s.user, "topic": s.topic, "on": on})
		if err != nil {
			return err
		}
		return r.post("/stress/member", "", string(body), nil)
	})
}

func (r *stress) rename(s *subscriber) error {
	name := fmt.Sprint("name", time.Now().UnixNano())
	if err := r.post("/stress/name", "", fmt.Sprintf(`{"user":%q,"name":%q}`, s.user, name), nil); err != nil {
		return err
	}
	r.crowd.rename(s.person, name)
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
				r.truth.fault("%s of %s does not receive any more (%d deliveries before)", s.name(), s.topic, before)
				break
			}
		}
	}
}

func (r *stress) start() error {
	server, err := testserver.Start(serveEnv+"="+r.dir, addressEnv+"="+r.address, overlapEnv+"="+r.overlap().String())
	if err != nil {
		return err
	}
	r.server = server
	return nil
}

func (r *stress) restart(clean bool) {
	r.crowd.stop(clean)
	defer r.crowd.resume()
	if clean {
		r.server.Stop()
	} else {
		var lag int64
		if err := r.request(http.MethodGet, "/stress/lag", "", "", &lag); err != nil {
			r.truth.fault("the server does not say how far its disk is behind: %v", err)
		}
		r.truth.mu.Lock()
		r.truth.kills = append(r.truth.kills, kill{time.Now(), r.loses + time.Duration(lag)*time.Millisecond})
		r.truth.mu.Unlock()
		r.server.Kill()
		r.crowd.mu.Lock()
		r.crowd.killed = time.Now()
		r.crowd.mu.Unlock()
	}
	r.crowd.halt()
	if err := r.start(); err != nil {
		r.truth.fault("the server does not start again: %v", err)
	}
}

func (r *stress) post(path, token, body string, answer any) error {
	return r.request(http.MethodPost, path, token, body, answer)
}

func (r *stress) request(method, path, token, body string, answer any) error {
	request, err := http.NewRequest(method, "http://"+r.address+path, bytes.NewReader([]byte(body)))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Authorization", token)
	return testserver.Do(r.http, request, answer)
}
