package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pbtopics/topics"
	"github.com/pbtopics/topics/internal/testserver"
)

type options struct {
	seed     uint64
	duration time.Duration
	rate     int
	proxied  bool
	only     string
	lenient  bool // the time limits are wide
}

// The honest world.
const (
	rooms    = 3
	perRoom  = 3
	period   = 200 * time.Millisecond // between two messages of a topic
	archives = 20                     // rooms, and as many open topics, that nobody uses
	archived = 20                     // messages of each

	connections = 10 // of each attacker

	square = "open/square" // where everybody is
	clock  = "clock/tower"
	wide   = "wide/field"

	honestText = "An honest message of about a hundred bytes, as people send them to each other in a room."
)

// warmUp is the time at the beginning of a phase that is not measured.
const warmUp = time.Second

// abuse is one run.
type abuse struct {
	options
	truth  *truth
	admin  *caller // the app's own code
	people []*person
	loser  *loser
	figures

	mu   sync.Mutex
	peak usage
}

func run(o options) (f *figures, err error) {
	dir, err := os.MkdirTemp("", "topics-abuse-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }() // of the system's temporary files

	server, err := testserver.Start(serveEnv + "=" + filepath.Join(dir, "data"))
	if err != nil {
		return nil, err
	}
	defer server.Stop()

	client := &http.Client{Timeout: patience, Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	r := &abuse{options: o, truth: newTruth(), admin: &caller{http: client, server: server.Address, address: "192.0.2.1"}}
	tokens, err := r.createWorld()
	if err != nil {
		return nil, err
	}
	attacker := attackPlan{
		Server: server.Address, Token: tokens[attackerUser()], Seed: o.seed, Rate: o.rate, Only: o.only,
		Report: filepath.Join(dir, "attack.json"),
	}
	if err := r.live(attacker); err != nil {
		return nil, err
	}
	r.check()
	return &r.figures, nil
}

// The accounts: those of the rooms, then one that comes and goes, one that is
// away, one that loses its access, and the attacker.
func roomUser(room, i int) string { return fmt.Sprint("user", room*perRoom+i) }
func guestOf(i int) string        { return fmt.Sprint("user", rooms*perRoom+i) }
func attackerUser() string        { return guestOf(3) }

func (r *abuse) createWorld() (tokens map[string]string, err error) {
	w := world{Proxied: r.proxied, Accounts: rooms*perRoom + 4, Archived: archived}
	for i := range rooms {
		of := room{ID: roomID(i), Members: []string{guestOf(i)}}
		for k := range perRoom {
			of.Members = append(of.Members, roomUser(i, k))
		}
		w.Rooms = append(w.Rooms, of)
	}
	for i := range archives {
		w.Rooms = append(w.Rooms, room{ID: roomID(rooms + i), Members: []string{roomUser(0, 0)}})
		w.Archives = append(w.Archives, "room/"+roomID(rooms+i), fmt.Sprint("open/notice-", i))
	}
	if err := r.admin.post("/abuse/world", w, &tokens); err != nil {
		return nil, err
	}

	person := func(user string, room int, more ...string) *person {
		return &person{
			caller: &caller{http: r.admin.http, server: r.admin.server, token: tokens[user], address: fmt.Sprintf("198.51.100.%d", len(r.people)+1)},
			truth:  r.truth, user: user, room: "room/" + roomID(room), more: more, timed: len(more) > 0, seen: map[int]string{},
		}
	}
	for i := range rooms {
		for k := range perRoom {
			r.people = append(r.people, person(roomUser(i, k), i, square, clock, wide))
		}
	}
	r.people = append(r.people, person(guestOf(0), 0), person(guestOf(1), 1))
	r.people[len(r.people)-2].exact = true
	r.loser = &loser{person: *person(guestOf(2), 2), admin: r.admin, id: roomID(2), period: time.Second, patient: 15 * time.Second}
	return tokens, nil
}

// live runs the two phases.
func (r *abuse) live(plan attackPlan) error {
	ctx, end := context.WithCancel(context.Background())
	defer end()
	quiet, attack := context.WithCancel(ctx) // done when the attack begins
	defer attack()
	calm, ceasefire := context.WithCancel(ctx) // done when it is over
	defer ceasefire()
	publishing, mute := context.WithCancel(ctx)
	defer mute()

	var living, sending, sampling sync.WaitGroup
	steady := len(r.people) - 2
	for _, p := range r.people[:steady] {
		living.Go(func() { p.stay(ctx) })
	}
	living.Go(func() { r.people[steady].comeAndGo(ctx, calm) })
	living.Go(func() { r.people[steady+1].beAway(ctx, quiet, calm) })
	var losing sync.WaitGroup
	losing.Go(func() { r.loser.live(calm) })
	begin := time.Now()
	publish := func(topic string, send sender) {
		begin = begin.Add(period / (rooms + 3)) // people do not send at the same moment
		due := begin
		sending.Go(func() { r.publish(publishing, due, topic, send) })
	}
	for i := range rooms {
		p := r.people[i*perRoom]
		publish(p.room, p.publish)
	}
	publish(square, r.people[0].publish)
	publish(clock, r.notify)
	publish(wide, r.notify)
	r.resetPeak()
	sampling.Go(func() { r.sample(ctx) })

	r.baselineFrom = time.Now().Add(warmUp)
	time.Sleep(warmUp)
	if err := r.measure(&r.start, false); err != nil {
		return err
	}
	time.Sleep(max(r.duration/4-warmUp, warmUp))
	if err := r.measure(&r.baseline, true); err != nil {
		return err
	}
	r.attackFrom = time.Now()
	r.resetPeak()
	attack()
	raw, err := json.Marshal(plan)
	if err != nil {
		return err
	}
	attackers, err := testserver.Start(attackEnv + "=" + string(raw))
	if err != nil {
		return err
	}
	defer attackers.Kill() // if it still runs
	time.Sleep(r.duration - r.duration/4)
	r.crowd = r.countMembers(square)
	if err := r.measure(&r.during, false); err != nil {
		return err
	}
	r.attackTo = time.Now()
	ceasefire()
	attackers.Stop()
	r.attacked, err = readReport(plan.Report)
	if err != nil {
		return err
	}

	losing.Wait()
	mute()
	sending.Wait()
	r.settle()
	r.readHistories()
	r.calm(&r.after)
	end()
	living.Wait()
	sampling.Wait()
	return nil
}

// sender sends a message to a topic, and returns the id if it knows it.
type sender func(topic string, m message) (id string, err error)

// publish sends to a topic at a steady rate.
func (r *abuse) publish(ctx context.Context, due time.Time, topic string, send sender) {
	for {
		due = due.Add(period)
		pause(ctx, time.Until(due))
		if ctx.Err() != nil {
			return
		}
		n := r.truth.begin(topic, due)
		id, err := send(topic, message{N: n, Text: honestText})
		if err != nil {
			r.truth.fault("message %d of %s was not taken: %v", n, topic, err)
			continue
		}
		r.truth.answer(topic, n, id)
	}
}

func (p *person) publish(topic string, m message) (id string, err error) {
	var answer struct{ ID string }
	err = p.post("/api/topics/publish", map[string]any{"topic": topic, "data": m}, &answer)
	return answer.ID, err
}

func (r *abuse) notify(topic string, m message) (id string, err error) {
	return "", r.admin.post("/abuse/notify", map[string]any{"topic": topic, "data": m}, nil)
}

// measure asks the server what it takes.
func (r *abuse) measure(u *usage, deep bool) error {
	path := "/abuse/usage"
	if deep {
		path += "?deep=1"
	}
	u.Own = cpuTime()
	return r.admin.get(path, u)
}

// sample notes the most that the server takes.
func (r *abuse) sample(ctx context.Context) {
	for ctx.Err() == nil {
		pause(ctx, 250*time.Millisecond)
		var u usage
		if err := r.measure(&u, false); err != nil {
			continue // what is wrong shows elsewhere
		}
		r.mu.Lock()
		r.peak.RSS = max(r.peak.RSS, u.RSS)
		r.peak.Disk = max(r.peak.Disk, u.Disk)
		r.peak.WriteAhead = max(r.peak.WriteAhead, u.WriteAhead)
		r.peak.Goroutines = max(r.peak.Goroutines, u.Goroutines)
		for name, value := range u.Stats {
			if n, ok := value.(float64); ok {
				known, _ := r.peak.Stats[name].(float64)
				r.peak.Stats[name] = max(known, n)
			}
		}
		r.mu.Unlock()
	}
}

func (r *abuse) resetPeak() {
	r.mu.Lock()
	defer r.mu.Unlock()

	r.peak = usage{Stats: map[string]any{}}
}

func (r *abuse) countMembers(topic string) int {
	var answer struct{ Count int }
	if err := r.people[0].get("/api/topics/presence?topic="+url.QueryEscape(topic), &answer); err != nil {
		r.truth.fault("the members of %s cannot be read: %v", topic, err)
	}
	return answer.Count
}

// settle waits until everybody has everything.
func (r *abuse) settle() {
	deadline := time.Now().Add(10 * time.Second)
	for _, p := range r.people {
		for {
			missing, first, all := p.missing()
			if missing == 0 && all > 0 {
				r.recovered += all
				break
			}
			if time.Now().After(deadline) {
				r.truth.fault("%s lacks %d of %d messages of %s, from number %d on, without a word", p.user, missing, all, p.room, first)
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}

// readHistories compares what topics keep with what was sent to them.
func (r *abuse) readHistories() {
	for i := range rooms {
		p := r.people[i*perRoom]
		var want []string
		for n, m := range r.truth.messages(p.room) {
			if m.id != "" {
				want = append(want, fmt.Sprint(m.id, " ", n))
			}
		}
		r.compare(p.room, want[max(0, len(want)-keptMessages):], r.readHistory(p, p.room))
	}

	var want []string
	for n := range archived {
		want = append(want, fmt.Sprint(n))
	}
	for i := range archives {
		for _, topic := range []string{"room/" + roomID(rooms+i), fmt.Sprint("open/notice-", i)} {
			var kept []string
			for _, line := range r.readHistory(r.people[0], topic) {
				_, n, _ := strings.Cut(line, " ")
				kept = append(kept, n)
			}
			r.compare(topic, want, kept)
		}
	}
}

// compare counts the lines that are wanted and not kept.
func (r *abuse) compare(topic string, want, kept []string) {
	lost := 0
	for _, line := range want {
		if !slices.Contains(kept, line) {
			lost++
		}
	}
	r.keptWanted += len(want)
	r.keptLost += lost
	switch {
	case lost > 0:
		r.lossy = append(r.lossy, fmt.Sprintf("%s (%d of %d)", topic, lost, len(want)))
	case !slices.Equal(want, kept):
		r.truth.fault("the history of %s has other messages than its own, or in another order", topic)
	}
}

// readHistory returns the kept messages, each as its id and its number.
func (r *abuse) readHistory(p *person, topic string) (kept []string) {
	before := ""
	for {
		var page struct {
			Messages []event `json:"messages"`
		}
		err := p.get("/api/topics/history?limit=500&topic="+url.QueryEscape(topic)+"&before="+url.QueryEscape(before), &page)
		if err != nil {
			r.truth.fault("the history of %s cannot be read: %v", topic, err)
			return kept
		}
		if len(page.Messages) == 0 {
			return kept
		}
		var lines []string
		for _, m := range page.Messages {
			lines = append(lines, fmt.Sprint(m.ID, " ", m.Data.N))
		}
		kept = append(lines, kept...)
		before = page.Messages[0].ID
	}
}

// calm waits until what the attackers have started has ended.
func (r *abuse) calm(u *usage) {
	deadline := time.Now().Add(30 * time.Second)
	for {
		if err := r.measure(u, false); err != nil {
			r.truth.fault("the usage cannot be read: %v", err)
			return
		}
		if u.Goroutines <= r.baseline.Goroutines+strayGoroutines || time.Now().After(deadline) {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	fewest := u.Goroutines
	time.Sleep(3500 * time.Millisecond) // PocketBase writes its log every 3 seconds
	if err := r.measure(u, true); err != nil {
		r.truth.fault("the usage cannot be read: %v", err)
	}
	u.Goroutines = min(u.Goroutines, fewest)
}

func statsOf(s topics.Stats) (stats map[string]any, err error) {
	raw, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	err = json.Unmarshal(raw, &stats)
	return stats, err
}
