package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/pbtopics/topics"
	"github.com/pbtopics/topics/internal/testserver"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
)

// addressHeader tells the server a client's own address, as a proxy would.
const addressHeader = "X-Forwarded-For"

// limits is the config under test: the default one, but for limits that nobody
// could reach in a minute. They are a tenth of the defaults, and those of bytes
// less: one sender may fill its topics beyond HistoryDiskBytes, as it may by the
// defaults, with 5,000 topics of 1 MiB.
func limits() topics.Config {
	return topics.Config{
		HistoryTotalBytes:           32 << 20, // 256 MiB
		HistoryDiskBytes:            40 << 20, // 4 GiB
		MaxTopics:                   10_000,   // 100,000
		MaxTopicsPerSender:          500,      // 5,000
		MaxPositions:                10_000,   // 100,000
		MaxPositionsPerSubscriber:   100,      // 1,000
		MaxIdempotencyKeysPerSender: 1000,     // 10,000
	}
}

// keptMessages is what a topic keeps: the default of Config.HistoryMessages.
const keptMessages = 1000

// The rules, of several shapes.
const (
	memberRule = "@request.auth.id != '' && members.id ?= @request.auth.id" // tied to a row
	clockRule  = "@now > '2000-01-01 00:00:00.000Z'"                        // true for a while only
	wideRule   = "@collection.rooms.kind ?= 'public'"                       // any write to rooms may change it
)

// serve runs the server.
func serve(dir string) error {
	member, clock, wide, everybody := memberRule, clockRule, wideRule, ""
	config := limits()
	config.Topics = []topics.Topic{
		{Pattern: "room/{id}", Collection: "rooms", SubscribeRule: &member, PublishRule: &member, PresenceRule: &member, Presence: true, History: keptMessages},
		{Pattern: "open/{name}", SubscribeRule: &everybody, PublishRule: &everybody, PresenceRule: &everybody, Presence: true, History: keptMessages},
		{Pattern: "clock/{name}", SubscribeRule: &clock},
		{Pattern: "wide/{name}", SubscribeRule: &wide},
	}
	app := core.NewBaseApp(core.BaseAppConfig{DataDir: dir})
	if err := topics.Register(app, config); err != nil {
		return err
	}
	return testserver.Serve(app, "127.0.0.1:0", func(e *core.ServeEvent) error {
		group := e.Router.Group("/abuse").Bind(apis.SkipSuccessActivityLog())
		group.POST("/world", makeWorld)
		group.POST("/member", setMember)
		group.POST("/notify", notify)
		group.GET("/usage", usageOf)
		return nil
	})
}

// world is what the run needs at its beginning, and gets with tokens.
type world struct {
	Proxied  bool     `json:"proxied"`
	Accounts int      `json:"accounts"`
	Rooms    []room   `json:"rooms"`
	Archives []string `json:"archives"` // topics that get some messages
	Archived int      `json:"archived"` // of each
}

type room struct {
	ID      string   `json:"id"`
	Members []string `json:"members"`
}

func makeWorld(e *core.RequestEvent) error {
	var w world
	if err := e.BindBody(&w); err != nil {
		return err
	}

	if w.Proxied {
		settings := e.App.Settings()
		settings.TrustedProxy.Headers = []string{addressHeader}
		if err := e.App.Save(settings); err != nil {
			return err
		}
	}
	tokens, err := testserver.CreateUsers(e.App, w.Accounts)
	if err != nil {
		return err
	}
	users, err := e.App.FindCollectionByNameOrId("users")
	if err != nil {
		return err
	}

	rooms := core.NewBaseCollection("rooms")
	rooms.Fields.Add(
		&core.TextField{Name: "kind"},
		&core.RelationField{Name: "members", CollectionId: users.Id, MaxSelect: 100},
	)
	if err := e.App.Save(rooms); err != nil {
		return err
	}
	for _, r := range w.Rooms {
		record := core.NewRecord(rooms)
		record.Id = r.ID
		record.Set("kind", "public")
		record.Set("members", r.Members)
		if err := e.App.Save(record); err != nil {
			return err
		}
	}

	for _, topic := range w.Archives {
		for n := range w.Archived {
			if err := topics.Notify(e.App, topic, message{N: n}); err != nil {
				return err
			}
		}
	}
	return e.JSON(http.StatusOK, tokens)
}

// membership is the answer of setMember: when the write had returned.
type membership struct {
	Committed int64 `json:"committed"`
}

func setMember(e *core.RequestEvent) error {
	var body struct {
		Room, User string
		On         bool
	}
	if err := e.BindBody(&body); err != nil {
		return err
	}
	record, err := e.App.FindRecordById("rooms", body.Room)
	if err != nil {
		return err
	}
	modifier := "members-"
	if body.On {
		modifier = "+members"
	}
	record.Set(modifier, body.User)
	if err := e.App.Save(record); err != nil {
		return err
	}
	return e.JSON(http.StatusOK, membership{Committed: time.Now().UnixNano()})
}

// notify sends as the app's own code does.
func notify(e *core.RequestEvent) error {
	var body struct {
		Topic string  `json:"topic"`
		Data  message `json:"data"`
	}
	if err := e.BindBody(&body); err != nil {
		return err
	}
	return topics.Notify(e.App, body.Topic, body.Data)
}

// usage is what the server takes.
type usage struct {
	RSS        int64          `json:"rss"`
	PeakRSS    int64          `json:"peakRss"`
	Heap       int64          `json:"heap"`       // live, after a collection
	Disk       int64          `json:"disk"`       // auxiliary.db
	WriteAhead int64          `json:"writeAhead"` // its log
	CPU        time.Duration  `json:"cpu"`        // since the start
	Machine    time.Duration  `json:"machine"`    // that of all processes
	Own        time.Duration  `json:"-"`          // CPU time of the honest people
	Goroutines int            `json:"goroutines"`
	Stats      map[string]any `json:"stats"`

	// only in depth: rows of the app's log that the plugin has written and the
	// longest of them, and all bytes of the log
	Lines     int   `json:"lines"`
	Longest   int64 `json:"longest"`
	LogBytes  int64 `json:"logBytes"`
	OtherRows int   `json:"otherRows"`
}

// usageOf answers with the usage. In depth it collects garbage first.
func usageOf(e *core.RequestEvent) error {
	u := usage{Goroutines: runtime.NumGoroutine()}
	deep := e.Request.URL.Query().Get("deep") != ""
	if deep {
		debug.FreeOSMemory()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		u.Heap = int64(m.HeapAlloc)
		row := e.App.AuxDB().NewQuery(`SELECT
			COALESCE(SUM(json_extract(data, '$.type') IS NOT 'request'), 0),
			COALESCE(MAX(CASE WHEN json_extract(data, '$.type') IS NOT 'request' THEN LENGTH(data) + LENGTH(message) END), 0),
			COALESCE(SUM(LENGTH(data) + LENGTH(message)), 0),
			COALESCE(SUM(json_extract(data, '$.type') IS 'request'), 0) FROM _logs`)
		if err := row.Row(&u.Lines, &u.Longest, &u.LogBytes, &u.OtherRows); err != nil {
			return err
		}
	}
	u.RSS, u.PeakRSS = residentMemory()
	u.CPU, u.Machine = cpuTime(), machineTime()
	for name, size := range map[string]*int64{"auxiliary.db": &u.Disk, "auxiliary.db-wal": &u.WriteAhead} {
		if info, err := os.Stat(filepath.Join(e.App.DataDir(), name)); err == nil {
			*size = info.Size()
		}
	}
	stats, err := statsOf(topics.From(e.App).Stats())
	if err != nil {
		return err
	}
	u.Stats = stats
	raw, err := json.Marshal(u) // e.JSON of later versions has no durations
	if err != nil {
		return err
	}
	return e.Blob(http.StatusOK, "application/json", raw)
}

// cpuTime returns the CPU time of this process. Outside Linux it is 0.
func cpuTime() time.Duration {
	raw, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return 0
	}
	// what follows the name, which may have any bytes
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	ticks := 0 // hundredths of a second
	for _, field := range fields[11:13] {
		n, err := strconv.Atoi(field)
		if err != nil {
			return 0
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// machineTime returns the CPU time of all processes of the machine. Outside
// Linux it is 0.
func machineTime() time.Duration {
	raw, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	const idle, wait, guest = 3, 4, 8 // guest time counts as user time too
	line, _, _ := strings.Cut(string(raw), "\n")
	ticks := 0
	for i, field := range strings.Fields(line)[1:] {
		if n, err := strconv.Atoi(field); err == nil && i != idle && i != wait && i < guest {
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// residentMemory returns the memory of this process in bytes, and the most that
// it was. Outside Linux both are 0.
func residentMemory() (now, peak int64) {
	raw, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(raw)) {
		name, value, _ := strings.Cut(line, ":")
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		switch {
		case err != nil:
		case name == "VmRSS":
			now = kib << 10
		case name == "VmHWM":
			peak = kib << 10
		}
	}
	return now, peak
}

// roomID is the id of the i-th room.
func roomID(i int) string { return fmt.Sprintf("room%011d", i) }
