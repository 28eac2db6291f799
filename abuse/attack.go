package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// attackPlan is what the process of the attackers is started with.
type attackPlan struct {
	Server string
	Token  string // of the account
	Seed   uint64
	Rate   int    // units a second and connection
	Only   string // one kind, or "" for all
	Report string // the file for the report
}

// attackReport is what they have done.
type attackReport struct {
	Connects int               `json:"connects"`
	Received int64             `json:"received"` // bytes of event streams
	CPU      time.Duration     `json:"cpu"`
	Kinds    map[string]*tally `json:"kinds"`
	Codes    map[string]int    `json:"codes"`    // of refusals
	Failures []string          `json:"failures"` // some of the answers with a status of 500 and more
}

// tally counts the requests of one kind by what became of them.
type tally struct {
	Taken   int `json:"taken"`
	Refused int `json:"refused"` // status 4xx
	Failed  int `json:"failed"`  // status 5xx
	Broken  int `json:"broken"`  // no answer

	Slowest time.Duration `json:"slowest"` // answer
}

// attackers are all the connections of both of them.
type attackers struct {
	plan attackPlan

	connects atomic.Int64
	received atomic.Int64

	// large is held while a body of several megabytes is sent, so that it is one at
	// a time: what PocketBase takes to read it is no fault of the plugin
	large sync.Mutex

	mu     sync.Mutex
	report attackReport
}

// attack goes on until standard input ends.
func attack(raw []byte) error {
	runtime.GOMAXPROCS(1)

	a := &attackers{report: attackReport{Kinds: map[string]*tally{}, Codes: map[string]int{}}}
	if err := json.Unmarshal(raw, &a.plan); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var working sync.WaitGroup
	for i, token := range []string{"", a.plan.Token} {
		for k := range connections {
			w := &worker{
				caller: &caller{
					server: a.plan.Server, token: token, address: fmt.Sprintf("203.0.113.%d", i+1),
					http: &http.Client{Timeout: patience, Transport: &http.Transport{MaxIdleConnsPerHost: 1, MaxConnsPerHost: 2}},
				},
				attackers: a, number: k, random: rand.New(rand.NewPCG(a.plan.Seed, uint64(i*connections+k)+100)),
			}
			working.Go(func() { w.live(ctx) })
		}
	}

	fmt.Println("attacking")
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	stop()
	working.Wait()

	a.report.Connects, a.report.Received = int(a.connects.Load()), a.received.Load()
	a.report.CPU = cpuTime()
	report, err := json.Marshal(a.report)
	if err != nil {
		return err
	}
	return os.WriteFile(a.plan.Report, report, 0o600)
}

func readReport(file string) (report attackReport, err error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return report, err
	}
	return report, json.Unmarshal(raw, &report)
}

// worker is one connection of an attacker, with what it sends beside.
type worker struct {
	*caller
	*attackers
	number int
	random *rand.Rand

	ctx     context.Context
	next    time.Time // when it may go on
	stream  *stream
	filled  int // messages of its own topics
	stalled atomic.Bool
	slow    atomic.Bool // it sends a body by and by
	drains  sync.WaitGroup
}

// connects is the kind of the workers' own connections in the report.
const connects = "connect"

// holding is how long a worker keeps a set of subscriptions.
const holding = 3 * time.Second

func (w *worker) live(ctx context.Context) {
	w.ctx = ctx
	defer w.drains.Wait()

	// not all at the same moment
	pause(ctx, holding*time.Duration(w.number)/connections)
	held, asked := w.kinds(streamAttacks), w.kinds(requestAttacks)
	for turn := w.number; ctx.Err() == nil; turn++ {
		if !w.open() {
			continue
		}
		// each one begins with another kind, so that all are there at once
		if len(held) > 0 {
			w.do(held[turn%len(held)])
		}
		for _, k := range asked {
			if k.name == floodMany && w.filled < ownTopics {
				w.do(k)
				w.do(k)
			}
		}
		for until := time.Now().Add(holding); time.Now().Before(until) && ctx.Err() == nil; {
			if len(asked) > 0 {
				w.do(asked[w.random.IntN(len(asked))])
			} else {
				w.spend(1)
			}
		}
		if w.stalled.Load() || w.random.IntN(2) == 0 || ctx.Err() != nil {
			w.stalled.Store(false)
			w.stream.close()
			w.stream = nil
		}
	}
	if w.stream != nil {
		w.stream.close()
	}
}

// kinds returns those that the plan has.
func (w *worker) kinds(all []kindOfAttack) []kindOfAttack {
	if w.plan.Only == "" {
		return all
	}
	return slices.DeleteFunc(slices.Clone(all), func(k kindOfAttack) bool { return k.name != w.plan.Only })
}

// knownAttack reports whether only is the name of an attack, or empty.
func knownAttack(only string) bool {
	named := func(k kindOfAttack) bool { return k.name == only }
	return only == "" || slices.ContainsFunc(streamAttacks, named) || slices.ContainsFunc(requestAttacks, named)
}

// open makes sure that there is a stream, which is read until it ends.
func (w *worker) open() bool {
	if w.stream != nil {
		return true
	}
	w.spend(2)
	s, err := w.connect()
	if err != nil {
		w.count(connects, &tally{Broken: 1}, "", "")
		return false
	}
	w.connects.Add(1)
	w.count(connects, &tally{Taken: 1}, "", "")
	w.stream = s
	w.drains.Go(func() { w.drain(s) })
	return true
}

func (w *worker) drain(s *stream) {
	buffer := make([]byte, 256<<10)
	for {
		for w.stalled.Load() && w.ctx.Err() == nil {
			time.Sleep(100 * time.Millisecond)
		}
		n, err := s.lines.Read(buffer)
		w.received.Add(int64(n))
		if err != nil {
			return
		}
	}
}

func (w *worker) do(k kindOfAttack) {
	w.spend(k.units)
	if w.ctx.Err() == nil {
		k.do(w, k.name)
	}
}

// spend waits until the worker's rate allows that many units.
func (w *worker) spend(units int) {
	pause(w.ctx, time.Until(w.next))
	w.next = time.Now().Add(time.Duration(units) * time.Second / time.Duration(w.plan.Rate))
}

// send sends a request and counts its answer.
func (w *worker) send(kind, method, path string, body io.Reader) {
	request, err := w.newRequest(method, path, body)
	if err != nil {
		w.count(kind, &tally{Broken: 1}, "", "")
		return
	}
	begun := time.Now()
	response, err := w.http.Do(request.WithContext(w.ctx))
	if err != nil {
		w.count(kind, &tally{Broken: 1}, "", err.Error())
		return
	}
	defer response.Body.Close()

	answer, err := io.ReadAll(io.LimitReader(response.Body, 64<<10))
	if err == nil {
		_, err = io.Copy(io.Discard, response.Body)
	}
	took := time.Since(begun)
	switch {
	case err != nil:
		w.count(kind, &tally{Broken: 1}, "", "")
	case response.StatusCode >= http.StatusInternalServerError:
		w.count(kind, &tally{Failed: 1, Slowest: took}, "", fmt.Sprintf("%s: %s: %.300s", kind, response.Status, answer))
	case response.StatusCode >= http.StatusBadRequest:
		code := response.Status
		if found := codePattern.FindSubmatch(answer); found != nil {
			code = string(found[1])
		}
		w.count(kind, &tally{Refused: 1, Slowest: took}, code, "")
	default:
		w.count(kind, &tally{Taken: 1, Slowest: took}, "", "")
	}
}

var codePattern = regexp.MustCompile(`"code":"([a-z_]+)"`)

// postRaw sends a body. It leaves out a large one while another one is sent.
func (w *worker) postRaw(kind, path, body string) {
	if len(body) > 1<<20 {
		if !w.large.TryLock() {
			return
		}
		defer w.large.Unlock()
	}
	w.send(kind, http.MethodPost, path, strings.NewReader(body))
}

// post sends JSON, with each < as one byte.
func (w *worker) post(kind, path string, body any) {
	var b strings.Builder
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(body); err != nil {
		panic(err)
	}
	w.postRaw(kind, path, b.String())
}

// hold subscribes the worker's connection to the keys and to the topic in which
// it sets states, and to nothing else.
func (w *worker) hold(kind string, keys []string) {
	keys = append(keys[:min(len(keys), manyKeys-1)], key(w.stateTopic(), map[string]any{"presence": true}))
	w.post(kind, "/api/realtime", map[string]any{"clientId": w.stream.clientID, "subscriptions": keys})
}

func (a *attackers) count(kind string, more *tally, code, failure string) {
	a.mu.Lock()
	defer a.mu.Unlock()

	t := a.report.Kinds[kind]
	if t == nil {
		t = new(tally)
		a.report.Kinds[kind] = t
	}
	t.Taken += more.Taken
	t.Refused += more.Refused
	t.Failed += more.Failed
	t.Broken += more.Broken
	t.Slowest = max(t.Slowest, more.Slowest)
	if code != "" {
		a.report.Codes[code]++
	}
	if more.Failed > 0 && len(a.report.Failures) < 10 {
		a.report.Failures = append(a.report.Failures, failure)
	}
}

// failed returns how many answers had a status of 500 and more.
func (r attackReport) failed() (n int) {
	for _, t := range r.Kinds {
		n += t.Failed
	}
	return n
}

func (r attackReport) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "the attackers: %d connections, %.1f MB received\n", r.Connects, float64(r.Received)/1e6)
	fmt.Fprintf(&b, "  %-18s %8s %8s %8s %8s %8s\n", "", "taken", "refused", "failed", "broken", "slowest")
	for _, kind := range slices.Sorted(maps.Keys(r.Kinds)) {
		t := r.Kinds[kind]
		fmt.Fprintf(&b, "  %-18s %8d %8d %8d %8d %8s\n", kind, t.Taken, t.Refused, t.Failed, t.Broken, short(t.Slowest))
	}
	for _, code := range slices.Sorted(maps.Keys(r.Codes)) {
		fmt.Fprintf(&b, "  %d refusals with %s\n", r.Codes[code], code)
	}
	return b.String()
}
