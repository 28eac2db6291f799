package main

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// kindOfAttack costs units of the worker's rate: about 1 for a request that does
// nothing special, and 40 for one with 1,000 subscriptions or a megabyte.
type kindOfAttack struct {
	name  string
	units int
	do    func(w *worker, kind string)
}

const (
	manyKeys   = 1000     // PocketBase takes no more for a connection
	maxKey     = 2400     // bytes, of which PocketBase takes 2,500
	maxData    = 64000    // bytes of JSON, of which a message may have 64 KiB
	hugeText   = 6 << 20  // bytes
	longExcept = 60 << 10 // bytes
	maxState   = 2000     // bytes, of which a state may have 2 KiB
	ownTopics  = 25       // of each worker
)

// streamAttacks are sets of subscriptions that a worker keeps for a while.
var streamAttacks = []kindOfAttack{
	{"clock-keys", 40, func(w *worker, kind string) {
		w.hold(kind, w.keys(func(int) string { return "clock/" + w.word() }))
	}},
	{"wide-keys", 40, func(w *worker, kind string) {
		w.hold(kind, w.keys(func(int) string { return "wide/" + w.word() }))
	}},
	{"option-keys", 40, func(w *worker, kind string) { // one topic
		w.hold(kind, w.keys(func(i int) string { return key(square, map[string]any{"n": i, "envelope": i%2 == 0}) }))
	}},
	{"resume-keys", 40, func(w *worker, kind string) { // one topic, and then many
		w.hold(kind, w.keys(func(i int) string {
			topic := square
			if i > manyKeys/2 {
				topic = "open/" + w.word()
			}
			return key(topic, map[string]any{"resume": w.text(128), "presence": true})
		}))
	}},
	{"invent-keys", 40, func(w *worker, kind string) {
		w.hold(kind, w.keys(func(int) string { return "open/" + w.word() }))
	}},
	{"invent-replays", 40, func(w *worker, kind string) {
		w.hold(kind, w.keys(func(int) string {
			return key("open/"+w.word(), map[string]any{"replay": 1000, "envelope": true})
		}))
	}},
	{"long-keys", 60, func(w *worker, kind string) {
		w.hold(kind, w.keys(func(int) string { return "open/" + w.word() + strings.Repeat("x", maxKey) }))
	}},
	{"huge-key", 60, func(w *worker, kind string) {
		w.hold(kind, []string{"open/" + w.word() + strings.Repeat("x", hugeText)})
	}},
	{"denied-keys", 40, func(w *worker, kind string) {
		w.hold(kind, w.keys(func(i int) string {
			if i%2 == 0 {
				return "room/" + roomID(i%rooms) + key("", map[string]any{"n": i})
			}
			return "secret/" + w.word()
		}))
	}},
	{"states", 40, func(w *worker, kind string) {
		w.hold(kind, w.keys(func(i int) string {
			return key(fmt.Sprint("open/states-", i%50), map[string]any{"presence": true, "state": map[string]any{"s": w.text(900), "i": i}})
		}))
	}},
	{"stalled-reader", 40, func(w *worker, kind string) {
		w.hold(kind, w.keys(func(i int) string {
			return key(w.flooded(), map[string]any{"replay": 1000, "envelope": true, "n": i})
		}))
		w.stalled.Store(true)
	}},
}

// requestAttacks are single requests.
var requestAttacks = []kindOfAttack{
	{"invent-history", 10, func(w *worker, kind string) {
		for range 10 {
			w.get(kind, "/api/topics/history?topic=open/"+w.word())
		}
	}},
	{"invent-presence", 10, func(w *worker, kind string) {
		for range 10 {
			w.get(kind, "/api/topics/presence?topic=open/"+w.word())
		}
	}},
	{"long-name-history", 2, func(w *worker, kind string) { w.get(kind, "/api/topics/history?topic=open/"+w.text(2000)) }},
	{"invent-topics", 10, func(w *worker, kind string) {
		w.publishAll(kind, 50, func(int) map[string]any { return map[string]any{"topic": "open/" + w.word(), "data": 1} })
	}},
	{"huge-name", 60, func(w *worker, kind string) {
		w.publishOne(kind, map[string]any{"topic": "open/" + strings.Repeat("x", hugeText), "data": 1})
	}},
	{"whitespace", 60, func(w *worker, kind string) {
		w.postRaw(kind, "/api/topics/publish", `{"topic":"open/white","data":[1`+strings.Repeat(" ", hugeText)+`]}`)
	}},
	{"whitespace-state", 4, func(w *worker, kind string) {
		w.postRaw(kind, "/api/topics/presence", `{"topic":"`+w.stateTopic()+`","clientId":"`+w.stream.clientID+`","state":{"a":1`+strings.Repeat(" ", 15<<10)+`}}`)
	}},
	{"long-except", 24, func(w *worker, kind string) {
		w.publishAll(kind, 10, func(int) map[string]any {
			return map[string]any{"topic": "open/except", "data": 1, "except": w.text(longExcept)}
		})
	}},
	{"huge-except", 60, func(w *worker, kind string) {
		w.publishOne(kind, map[string]any{"topic": "open/except", "data": 1, "except": strings.Repeat("e", hugeText)})
	}},
	{"idempotency", 10, func(w *worker, kind string) {
		w.publishAll(kind, 100, func(int) map[string]any {
			return map[string]any{"topic": "open/once", "data": 1, "idempotencyKey": w.text(128)}
		})
	}},
	{"flood", 20, func(w *worker, kind string) {
		topic := w.flooded()
		w.publishAll(kind, 8, func(int) map[string]any { return map[string]any{"topic": topic, "data": lessThan} })
	}},
	{floodMany, 40, func(w *worker, kind string) {
		w.publishAll(kind, 16, func(int) map[string]any {
			return map[string]any{"topic": w.ownTopic(), "data": lessThan, "event": w.text(64)}
		})
	}},
	{duplicates, 2, func(w *worker, kind string) {
		w.postRaw(kind, "/api/topics/publish", `{"topic":"room/`+roomID(0)+`","topic":"open/twice","data":1}`)
		w.postRaw(kind, "/api/topics/publish", `{"topic":"open/twice","data":{"a":1,"a":2}}`)
	}},
	{"deep-json", 4, func(w *worker, kind string) {
		w.postRaw(kind, "/api/topics/publish", `{"topic":"open/deep","data":`+strings.Repeat("[", 5000)+strings.Repeat("]", 5000)+`}`)
	}},
	{"fast-states", 10, func(w *worker, kind string) {
		for i := range 10 {
			w.post(kind, "/api/topics/presence", map[string]any{
				"topic": w.stateTopic(), "clientId": w.stream.clientID,
				"state": map[string]any{"s": w.text(maxState), "i": i},
			})
		}
	}},
	{"storm", 30, func(w *worker, kind string) {
		for range 10 {
			s, err := w.connect()
			if err != nil {
				w.count(kind, &tally{Broken: 1}, "", "")
				continue
			}
			w.connects.Add(1)
			w.count(kind, &tally{Taken: 1}, "", "")
			if w.random.IntN(2) == 0 {
				_ = w.subscribe(s.clientID, key("open/"+w.word(), map[string]any{"resume": w.text(64)})) // it may be refused
			}
			s.close()
		}
	}},
	{"read-flood", 10, func(w *worker, kind string) { w.get(kind, "/api/topics/history?limit=500&topic="+w.flooded()) }},
	{"slow-body", 5, func(w *worker, kind string) { w.slowBody(kind) }},
}

// floodMany is the kind that all begin with, before their topics are used up.
const floodMany = "flood-many"

// duplicates is the kind of which nothing may be taken: the rule could see
// another value than a subscriber.
const duplicates = "duplicate-keys"

// lessThan is a payload that takes six times the room once it is escaped.
var lessThan = strings.Repeat("<", maxData)

// word is a name that nobody has used.
func (w *worker) word() string { return fmt.Sprintf("%016x", w.random.Uint64()) }

// text is so long and like no other.
func (w *worker) text(length int) string {
	var b strings.Builder
	for b.Len() < length {
		b.WriteString(w.word())
	}
	return b.String()[:length]
}

// flooded is one of the topics that the attackers fill.
func (w *worker) flooded() string { return fmt.Sprint("open/flood-", w.random.IntN(20)) }

// stateTopic is shared by a few workers.
func (w *worker) stateTopic() string { return fmt.Sprint("open/state-", w.number%3) }

// ownTopic is the next of those that the worker fills by itself. All workers
// together begin no more than the attackers may.
func (w *worker) ownTopic() string {
	w.filled++
	return fmt.Sprintf("open/own-%s-%d-%d", w.address, w.number, w.filled%ownTopics)
}

func (w *worker) keys(name func(i int) string) []string {
	keys := make([]string, manyKeys)
	for i := range keys {
		keys[i] = name(i)
	}
	return keys
}

func (w *worker) get(kind, path string) {
	path, query, _ := strings.Cut(path, "?")
	values, err := url.ParseQuery(query)
	if err != nil {
		panic(err)
	}
	w.send(kind, http.MethodGet, path+"?"+values.Encode(), nil)
}

func (w *worker) publishOne(kind string, m map[string]any) {
	w.post(kind, "/api/topics/publish", m)
}

func (w *worker) publishAll(kind string, count int, of func(i int) map[string]any) {
	messages := make([]map[string]any, count)
	for i := range messages {
		messages[i] = of(i)
	}
	w.publishOne(kind, map[string]any{"messages": messages})
}

// slowBody sends a large body by and by, and never all of it. A worker sends one
// at a time.
func (w *worker) slowBody(kind string) {
	if w.slow.Swap(true) {
		return
	}
	conn, err := net.DialTimeout("tcp", w.server, patience)
	if err == nil {
		err = conn.SetDeadline(time.Now().Add(patience))
	}
	if err != nil {
		w.slow.Store(false)
		w.count(kind, &tally{Broken: 1}, "", "")
		return
	}
	_, err = fmt.Fprintf(conn, "POST /api/topics/publish HTTP/1.1\r\nHost: %s\r\n%s: %s\r\nAuthorization: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n{\"topic\":\"open/slow\",\"data\":[1",
		w.server, addressHeader, w.address, w.token, hugeText)
	if err != nil {
		w.slow.Store(false)
		w.count(kind, &tally{Broken: 1}, "", "")
		_ = conn.Close()
		return
	}
	w.count(kind, &tally{Taken: 1}, "", "")
	piece := strings.Repeat(" ", 16<<10)
	w.drains.Go(func() {
		defer w.slow.Store(false)
		defer func() { _ = conn.Close() }()
		for range 30 {
			pause(w.ctx, 100*time.Millisecond)
			if _, err := conn.Write([]byte(piece)); err != nil || w.ctx.Err() != nil {
				return
			}
		}
	})
}
