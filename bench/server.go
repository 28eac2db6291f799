package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/pbtopics/topics"
	"github.com/pbtopics/topics/internal/testserver"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
)

// kind says what a server sends messages with.
type kind string

const (
	docsLoop kind = "docs' loop"    // plain PocketBase and the documented notify loop
	records  kind = "record events" // plain PocketBase, a record is created for each message
	plugin   kind = "topics"
	inMemory kind = "topics, history in memory"
	onDisk   kind = "topics, history on disk"
)

// isPlugin reports whether the server has the plugin.
func (k kind) isPlugin() bool { return k == plugin || k == inMemory || k == onDisk }

// The rule of the topics room/{room} and the collections that it reads.
const memberRule = "@request.auth.id != '' && @collection.members.room ?= @topic.room && @collection.members.user ?= @request.auth.id"

// writeTimeout is shorter than the default, so that the scenarios see its end.
const writeTimeout = 5 * time.Second

// serve runs a server.
func serve(k kind) (err error) {
	dir, err := os.MkdirTemp("", "topics-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	app := core.NewBaseApp(core.BaseAppConfig{DataDir: dir})
	if k.isPlugin() {
		everyone, members := "", memberRule
		kept := 0
		if k != plugin {
			kept = 1000
		}
		// heartbeats would be counted for idle connections, in windows too
		// short to show their true share
		err := topics.Register(app, topics.Config{Heartbeat: -1, WriteTimeout: writeTimeout, HistoryInMemory: k == inMemory, ResumeOverlap: -1, Topics: []topics.Topic{
			{Pattern: "open/{name}", SubscribeRule: &everyone, PublishRule: &everyone, History: kept},
			{Pattern: "room/{room}", SubscribeRule: &members},
		}})
		if err != nil {
			return err
		}
	}
	return testserver.Serve(app, "127.0.0.1:0", func(e *core.ServeEvent) error {
		if err := createCollections(e.App); err != nil {
			return err
		}
		s := &server{app: e.App, kind: k}
		group := e.Router.Group("/bench").Bind(apis.SkipSuccessActivityLog())
		group.POST("/publish", s.publish)
		group.POST("/loop", s.loop)
		group.POST("/prepare", s.prepare)
		group.GET("/usage", s.usage)
		group.POST("/profile", s.profile)
		return nil
	})
}

func createCollections(app core.App) error {
	if err := testserver.CreateMembers(app, "members", "room"); err != nil {
		return err
	}
	everyone := ""
	messages := core.NewBaseCollection("messages")
	messages.ListRule, messages.ViewRule = &everyone, &everyone
	messages.Fields.Add(&core.JSONField{Name: "data", MaxSize: 1 << 20})
	return app.Save(messages)
}

type server struct {
	app  core.App
	kind kind
}

func (s *server) notify(topic string, data any) error {
	switch s.kind {
	case plugin, inMemory, onDisk:
		return topics.Notify(s.app, topic, data)
	case records:
		collection, err := s.app.FindCachedCollectionByNameOrId("messages")
		if err != nil {
			return err
		}
		record := core.NewRecord(collection)
		record.Set("data", data)
		return s.app.Save(record)
	default:
		return docsNotify(s.app, topic, data)
	}
}

// publish sends the body to a topic.
func (s *server) publish(e *core.RequestEvent) error {
	body, err := io.ReadAll(e.Request.Body)
	if err != nil {
		return err
	}
	if err := s.notify(e.Request.URL.Query().Get("topic"), json.RawMessage(body)); err != nil {
		return err
	}
	return e.NoContent(http.StatusNoContent)
}

// loop sends messages from here: count of them, or one every so often. It
// answers how long each took to be sent.
func (s *server) loop(e *core.RequestEvent) error {
	var p loopParams
	if err := e.BindBody(&p); err != nil {
		return err
	}

	pad := makePad(p.Size)
	sent := make([]uint32, p.Topics)
	took := make([]time.Duration, 0, p.Count)
	next := time.Now()
	for range p.Count {
		if p.Every > 0 {
			next = next.Add(time.Duration(p.Every))
			time.Sleep(time.Until(next))
		}
		t := rand.IntN(p.Topics)
		sent[t]++
		m := message{phase: p.Phase, publisher: uint32(t), n: sent[t], at: time.Now().UnixNano()}
		start := time.Now()
		if err := s.notify(p.Prefix+strconv.Itoa(t), json.RawMessage(m.append(nil, pad))); err != nil {
			return err
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	return e.JSON(http.StatusOK, loopAnswer{Sent: sent, P50: int64(percentile(took, 50)), P99: int64(percentile(took, 99))})
}

type loopParams struct {
	Phase  uint32 `json:"phase"`
	Prefix string `json:"prefix"` // of the topics, which are numbered
	Topics int    `json:"topics"`
	Count  int    `json:"count"`
	Size   int    `json:"size"`
	Every  int64  `json:"every"` // nanoseconds, 0 for as fast as it goes
}

type loopAnswer struct {
	Sent []uint32 `json:"sent"`
	P50  int64    `json:"p50"`
	P99  int64    `json:"p99"`
}

// prepare makes users, each a member of five of a thousand rooms, and answers
// their tokens.
func (s *server) prepare(e *core.RequestEvent) error {
	count, err := strconv.Atoi(e.Request.URL.Query().Get("users"))
	if err != nil {
		return err
	}
	tokens, err := testserver.CreateUsers(s.app, count)
	if err != nil {
		return err
	}
	_, err = s.app.NonconcurrentDB().NewQuery(fmt.Sprintf(
		"INSERT INTO members (id, room, user) SELECT 'm' || i || 'r' || r.column1, (i * 7 + r.column1 * 131) %% %d, id "+
			"FROM (SELECT id, substr(id, 5) + 0 AS i FROM users), (VALUES (0), (1), (2), (3), (4)) r", roomCount)).Execute()
	if err != nil {
		return err
	}
	return e.JSON(http.StatusOK, tokens)
}

// usage is what the process has used so far.
type usage struct {
	CPU         int64 `json:"cpu"`  // nanoseconds
	Heap        int64 `json:"heap"` // live and not yet collected
	Stacks      int64 `json:"stacks"`
	Resident    int64 `json:"resident"`
	Connections int   `json:"connections"`

	Topics *topics.Stats `json:"topics,omitempty"`
}

func (s *server) usage(e *core.RequestEvent) error {
	if e.Request.URL.Query().Has("collect") {
		debug.FreeOSMemory()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	answer := usage{
		CPU:         int64(cpuTime()),
		Heap:        int64(m.HeapAlloc),
		Stacks:      int64(m.StackInuse),
		Resident:    resident(),
		Connections: s.app.SubscriptionsBroker().TotalClients(),
	}
	if s.kind.isPlugin() {
		stats := topics.From(s.app).Stats()
		answer.Topics = &stats
	}
	return e.JSON(http.StatusOK, answer)
}

// profile starts (?to=file) or stops a CPU profile.
func (s *server) profile(e *core.RequestEvent) error {
	pprof.StopCPUProfile()
	if name := e.Request.URL.Query().Get("to"); name != "" {
		f, err := os.Create(name)
		if err != nil {
			return err
		}
		return pprof.StartCPUProfile(f)
	}
	return nil
}

// cpuTime is what this process has used of the CPU, system time included.
func cpuTime() time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func resident() int64 {
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0 // not Linux
	}
	var size, pages int64
	if _, err := fmt.Sscan(string(statm), &size, &pages); err != nil {
		return 0
	}
	return pages * int64(os.Getpagesize())
}
