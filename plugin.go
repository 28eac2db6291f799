// Package topics adds access rules to the custom realtime topics of
// PocketBase, and delivers their messages in order, without ever waiting for
// a client. Clients need nothing but the official SDKs.
//
//	func main() {
//		app := pocketbase.New()
//		topics.MustRegister(app, topics.Config{})
//		if err := app.Start(); err != nil {
//			log.Fatal(err)
//		}
//	}
//
//	topics.Notify(app, "room/42", map[string]any{"test": 123})
//
//	await pb.realtime.subscribe("room/42", (e) => console.log(e)) // {test: 123}
//
// # Guarantees
//
//  1. Deny by default. A custom topic that no rule record matches can be
//     neither subscribed nor published to by a client. Topics of collections,
//     PB_CONNECT and @oauth2 are PocketBase's own and pass untouched.
//  2. A denial is loud and local. It never fails the SDK's request, never
//     affects another topic, and is told once, on the denied key.
//  3. Access follows the data. When a commit makes a rule no longer hold for an
//     open subscription, no message published after that commit's success
//     hooks reaches it, and it is told. docs/guarantees.md has the argument.
//  4. Whatever cannot be decided is denied: a missing collection, a rule that
//     does not parse, a failing query. The app's log says why.
//  5. Order. All subscribers of a topic see its messages in one order.
//  6. A publisher never waits for a client. Each client's queue is bounded in
//     messages and bytes; a client that does not keep up is closed.
//  7. Transactions. [Notify] inside a transaction sends after the commit; a
//     rollback sends nothing.
//  8. Presence. What a watcher is told of a topic's members adds up to those
//     there are, in order with the messages. Who may not be there is not shown.
//  9. Bounded. Topics, payloads, queues and what is told of members have limits,
//     with the defaults that [Config] documents.
//
// # Concurrency
//
// All functions and methods are safe for concurrent use. No lock is held
// while calling PocketBase, the app's code or its log. (Subscribe requests of
// one client wait for each other.) A panic of that code ends nothing else, and
// gives nobody access. When the app terminates, the plugin's goroutines end,
// and are waited for, for at most [Config.WriteTimeout].
package topics

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/pocketbase/pocketbase/core"

	_ "github.com/pbtopics/topics/migrations" // the topic rules collection
)

// Config configures the plugin. The zero value works.
type Config struct {
	// Topics are topic rules kept in code. They need no record, cannot be
	// edited in the dashboard, and win over a record that matches the same
	// topics.
	Topics []Topic

	// AllowUnknown lets clients subscribe to topics that neither a record nor
	// Topics matches, as in plain PocketBase. Publishing to them through the
	// API stays denied. Default false.
	AllowUnknown bool

	// QueueMessages is how many messages may wait for one client before it is
	// closed as a slow consumer. Default 1024.
	QueueMessages int

	// QueueBytes is how many bytes may wait for one client before it is closed
	// as a slow consumer. Default 1 MiB; must leave room for one message.
	QueueBytes int

	// WriteTimeout is how long one write to a client may block, on Linux without
	// any progress, before its connection is closed. It is also the longest time
	// that the plugin takes to end when the app terminates. Default 10 seconds.
	WriteTimeout time.Duration

	// Heartbeat is the pause after which a quiet connection gets an event
	// stream comment, which keeps it from PocketBase's idle timeout of 5
	// minutes. Default 25 seconds, -1 sends none.
	Heartbeat time.Duration

	// MaxPayload is the limit of one message's JSON in bytes. Default 64 KiB; at
	// most half of QueueBytes, which is also what -1 stands for.
	MaxPayload int

	// MaxPublishMessages is how many messages one request of
	// POST /api/topics/publish may carry. Default 100.
	MaxPublishMessages int

	// SweepInterval is the period in which all open subscriptions are decided
	// anew, to find what no hook tells of: raw SQL and the writes of other
	// processes. Default 1 minute, -1 never does.
	SweepInterval time.Duration

	// HistoryMessages is the most that any topic keeps, whatever its rule says.
	// Default 1000.
	HistoryMessages int

	// HistoryBytes is the most that any topic keeps in bytes: the messages' JSON
	// and 512 for each. Default 1 MiB.
	HistoryBytes int

	// HistoryInMemory keeps histories and positions in memory only, so that a
	// restart ends them. By default a process that serves has them also in
	// PocketBase's auxiliary database.
	HistoryInMemory bool

	// MaxTopics is how many topics may have a history, in memory and on the
	// disk. Beyond it, those that were not used for the longest time lose
	// theirs. Default 100,000.
	MaxTopics int

	// ResumeFor is how long the position of a subscriber with the resume option
	// is kept after its connection has ended. Default 24 hours.
	ResumeFor time.Duration

	// ResumeOverlap is how long before the end of a connection a message must
	// have been sent to it to count as received. What was sent later is sent
	// again, with the same id. Default 10 seconds, -1 for none.
	ResumeOverlap time.Duration

	// MaxPositions is how many positions are kept. Default 100,000.
	MaxPositions int

	// PresenceGrace is how long a member stays after its last connection has
	// gone, so that a reconnect shows as nothing. It is also how long a topic is
	// occupied after its last subscriber. Default 15 seconds, -1 for none.
	PresenceGrace time.Duration

	// PresenceSnapshot is how many members of a topic subscribers, and callers of
	// GET /api/topics/presence, see. If there are more, or their JSON takes more
	// than 256 KiB or a quarter of QueueBytes, they see the number only. Default
	// 1000.
	PresenceSnapshot int

	// HistoryTotalBytes is the most memory that the histories of all topics take
	// together. Messages beyond it are read from the disk when somebody needs
	// them; with HistoryInMemory the topics that were not used for the longest
	// time lose theirs. Default 256 MiB.
	HistoryTotalBytes int

	// HistoryDiskBytes is the most that the histories of all topics take in the
	// auxiliary database. Beyond it the topics that were not used for the
	// longest time lose theirs. Default 4 GiB.
	HistoryDiskBytes int

	// MaxTopicsPerSender is how many topics with a history one account, or the
	// guests of one address, may begin through the API. A publish that would
	// begin one more is refused with sender_topics_exceeded. Superusers are not
	// limited. Default 5,000, -1 for no limit.
	MaxTopicsPerSender int

	// MaxPositionsPerSubscriber is how many positions of the resume option are
	// kept for one account, or the guests of one address. Beyond it, its own
	// that was not used for the longest time goes. Default 1,000, -1 for no
	// limit.
	MaxPositionsPerSubscriber int

	// MaxIdempotencyKeysPerSender is how many idempotency keys of one account,
	// or the guests of one address, are remembered. Beyond it, its own oldest
	// one goes. Default 10,000, -1 for no limit.
	MaxIdempotencyKeysPerSender int

	// MaxKeysPerTopic is how many subscriptions with different options one
	// connection may have to one topic. Others are denied with
	// topic_subscriptions_exceeded. Default 20.
	MaxKeysPerTopic int

	// MaxSubscriptions is how many subscriptions to topics one connection may
	// have. Those that it has already stay. Others are denied with
	// subscriptions_exceeded. Default 1,000, PocketBase's own limit.
	MaxSubscriptions int

	// MaxSubscriptionsPerAccount is how many subscriptions all connections of
	// an account may have. Others are denied with account_subscriptions_exceeded.
	// Superusers are not limited. Default 5,000, -1 for no limit.
	MaxSubscriptionsPerAccount int

	// MaxConnectionsPerAccount is how many connections of an account may
	// subscribe to topics. On others all topics are denied with
	// account_connections_exceeded. Superusers are not limited. Default 250, -1
	// for no limit.
	MaxConnectionsPerAccount int

	// MaxConnectionsPerAddress is how many connections one address may have
	// open. Others are refused with status 429 and address_connections_exceeded.
	// An address counts only where it is the client's own: see
	// docs/operating.md. Default 1,000, -1 for no limit.
	MaxConnectionsPerAddress int

	// RecordQueueBytes is how many bytes of PocketBase's own record events, and of
	// what Go code sends to a client directly, may wait for one client before it
	// is closed as a slow consumer; and at most one message for each 256 of them.
	// They do not count against QueueMessages and QueueBytes. Default 16 MiB.
	RecordQueueBytes int

	// LogLines is how many lines a minute clients may provoke in the app's log.
	// Beyond it, one line more says how many were left out. A quarter is for
	// errors only, such as a rule that cannot be evaluated. Default 60.
	LogLines int
}

const minQueueBytes = 4 << 10

func (c Config) withDefaults() Config {
	if c.QueueMessages == 0 {
		c.QueueMessages = 1024
	}
	if c.QueueBytes == 0 {
		c.QueueBytes = 1 << 20
	}
	if c.WriteTimeout == 0 {
		c.WriteTimeout = 10 * time.Second
	}
	if c.Heartbeat == 0 {
		c.Heartbeat = 25 * time.Second
	}
	switch c.MaxPayload {
	case 0:
		c.MaxPayload = min(64<<10, c.QueueBytes/2)
	case -1:
		c.MaxPayload = c.QueueBytes / 2
	}
	if c.MaxPublishMessages == 0 {
		c.MaxPublishMessages = 100
	}
	if c.SweepInterval == 0 {
		c.SweepInterval = time.Minute
	}
	if c.HistoryMessages == 0 {
		c.HistoryMessages = 1000
	}
	if c.HistoryBytes == 0 {
		c.HistoryBytes = 1 << 20
	}
	if c.MaxTopics == 0 {
		c.MaxTopics = 100_000
	}
	if c.ResumeFor == 0 {
		c.ResumeFor = 24 * time.Hour
	}
	switch c.ResumeOverlap {
	case 0:
		c.ResumeOverlap = 10 * time.Second
	case -1:
		c.ResumeOverlap = 0
	}
	if c.MaxPositions == 0 {
		c.MaxPositions = 100_000
	}
	switch c.PresenceGrace {
	case 0:
		c.PresenceGrace = 15 * time.Second
	case -1:
		c.PresenceGrace = 0
	}
	if c.PresenceSnapshot == 0 {
		c.PresenceSnapshot = 1000
	}
	for _, limit := range c.limits() {
		if *limit.field == 0 {
			*limit.field = limit.standard
		}
	}
	return c
}

// validate expects the defaults to be filled in.
func (c Config) validate() error {
	switch {
	case c.QueueMessages < 1:
		return fmt.Errorf("topics: Config.QueueMessages must be at least 1, got %d", c.QueueMessages)
	case c.QueueBytes < minQueueBytes:
		return fmt.Errorf("topics: Config.QueueBytes must be at least %d, got %d", minQueueBytes, c.QueueBytes)
	case c.WriteTimeout < time.Millisecond:
		return fmt.Errorf("topics: Config.WriteTimeout must be at least 1ms, got %v", c.WriteTimeout)
	case c.Heartbeat != -1 && c.Heartbeat < time.Millisecond:
		return fmt.Errorf("topics: Config.Heartbeat must be at least 1ms, or -1 for none, got %v", c.Heartbeat)
	case c.MaxPayload < 1 || c.MaxPayload > c.QueueBytes/2:
		return fmt.Errorf("topics: Config.MaxPayload must be between 1 and half of QueueBytes (%d), or -1 for that half, got %d", c.QueueBytes, c.MaxPayload)
	case c.SweepInterval != -1 && c.SweepInterval < time.Millisecond:
		return fmt.Errorf("topics: Config.SweepInterval must be at least 1ms, or -1 for never, got %v", c.SweepInterval)
	case c.HistoryMessages < 1:
		return fmt.Errorf("topics: Config.HistoryMessages must be at least 1, got %d", c.HistoryMessages)
	case c.HistoryBytes < 1:
		return fmt.Errorf("topics: Config.HistoryBytes must be at least 1, got %d", c.HistoryBytes)
	case c.MaxTopics < 1:
		return fmt.Errorf("topics: Config.MaxTopics must be at least 1, got %d", c.MaxTopics)
	case c.ResumeFor < time.Second:
		return fmt.Errorf("topics: Config.ResumeFor must be at least 1s, got %v", c.ResumeFor)
	case c.ResumeOverlap < 0:
		return fmt.Errorf("topics: Config.ResumeOverlap must be positive, or -1 for none, got %v", c.ResumeOverlap)
	case c.MaxPositions < 1:
		return fmt.Errorf("topics: Config.MaxPositions must be at least 1, got %d", c.MaxPositions)
	case c.PresenceGrace < 0:
		return fmt.Errorf("topics: Config.PresenceGrace must be positive, or -1 for none, got %v", c.PresenceGrace)
	case c.PresenceSnapshot < 1:
		return fmt.Errorf("topics: Config.PresenceSnapshot must be at least 1, got %d", c.PresenceSnapshot)
	case c.MaxPublishMessages < 1:
		return fmt.Errorf("topics: Config.MaxPublishMessages must be at least 1, got %d", c.MaxPublishMessages)
	}
	for _, limit := range c.limits() {
		switch {
		case limit.optional && *limit.field == -1:
		case *limit.field < 1 && limit.optional:
			return fmt.Errorf("topics: Config.%s must be at least 1, or -1 for no limit, got %d", limit.name, *limit.field)
		case *limit.field < 1:
			return fmt.Errorf("topics: Config.%s must be at least 1, got %d", limit.name, *limit.field)
		}
	}
	return nil
}

// limit is a field of [Config] that bounds what clients can make grow.
type limit struct {
	name     string
	field    *int
	standard int
	optional bool // -1 is no limit
}

// limits point into c.
func (c *Config) limits() []limit {
	return []limit{
		{"HistoryTotalBytes", &c.HistoryTotalBytes, 256 << 20, false},
		{"HistoryDiskBytes", &c.HistoryDiskBytes, 4 << 30, false},
		{"MaxTopicsPerSender", &c.MaxTopicsPerSender, 5000, true},
		{"MaxPositionsPerSubscriber", &c.MaxPositionsPerSubscriber, 1000, true},
		{"MaxIdempotencyKeysPerSender", &c.MaxIdempotencyKeysPerSender, 10_000, true},
		{"MaxKeysPerTopic", &c.MaxKeysPerTopic, 20, false},
		{"MaxSubscriptions", &c.MaxSubscriptions, 1000, false},
		{"MaxSubscriptionsPerAccount", &c.MaxSubscriptionsPerAccount, 5000, true},
		{"MaxConnectionsPerAccount", &c.MaxConnectionsPerAccount, 250, true},
		{"MaxConnectionsPerAddress", &c.MaxConnectionsPerAddress, 1000, true},
		{"RecordQueueBytes", &c.RecordQueueBytes, 16 << 20, false},
		{"LogLines", &c.LogLines, 60, false},
	}
}

// Plugin is the registered plugin of an app. [From] finds it.
type Plugin struct {
	config   Config
	rules    *rules
	hub      *hub
	grants   *grants
	writes   *writes
	foreign  *foreignClients
	history  *history
	presence *presence
	calls    *hookCalls
	commits  *commits
	repeats  *repeats
	logs     *logLimiter
	guard    *guard
	quota    *quota

	uncounted atomic.Bool // the log has said that addresses are not counted

	counters counters

	closed atomic.Bool

	// publishing has the calls that publish, and delivering those of them that
	// are past all queries and the app's code
	publishing, delivering gate

	// life ends decisions when the app terminates
	life    context.Context
	endLife context.CancelFunc

	// registered is the app that the plugin was given
	registered core.App

	// serving is the app that serves, which is not a transaction's
	serving atomic.Pointer[core.App]
}

// MustRegister is [Register], but panics on an error.
func MustRegister(app core.App, config Config) {
	if err := Register(app, config); err != nil {
		panic(err)
	}
}

// Register adds the plugin to app, which may be bootstrapped already and may
// be a transaction's app. It returns [ErrAlreadyRegistered] the second time
// and an error that names the field for an invalid config.
func Register(app core.App, config Config) error {
	if app == nil {
		return errors.New("topics: Register needs an app")
	}

	config = config.withDefaults()
	if err := config.validate(); err != nil {
		return err
	}

	rules, err := newRules(config.Topics)
	if err != nil {
		return err
	}

	p := &Plugin{
		config: config,
		rules:  rules,
		hub:    newHub(),
		grants: newGrants(rules, config.SweepInterval),
		quota:  newQuota(config),

		registered: app,

		calls:   newHookCalls(),
		commits: newCommits(),
		repeats: newRepeats(config.MaxIdempotencyKeysPerSender),
	}
	p.life, p.endLife = context.WithCancel(context.Background())
	p.guard = &guard{report: p.logPanic}
	p.calls.guard, p.commits.guard, p.grants.guard = p.guard, p.guard, p.guard
	p.logs = newLogLimiter(config.LogLines, p.logLeftOut)
	p.calls.trigger, p.calls.failed = p.triggerCall, p.logCallError
	p.history = newHistory(p.hub, config)
	p.history.retention, p.history.app, p.history.failed = p.retentionOf, p.outerApp, p.logHistoryError
	p.history.guard = p.guard
	if !config.HistoryInMemory {
		p.history.disk = newDisk(max(config.HistoryTotalBytes/4, 4<<20), p.logDiskError)
		p.history.disk.guard = p.guard
		p.history.positions.disk = p.history.disk
	}
	p.presence = newPresence(p.hub, p.grants, p.calls, p.history.disk, config)
	p.presence.guard = p.guard
	p.hub.identify, p.hub.quota = p.identify, p.quota
	p.writes = newWrites(p.onWritten)
	p.grants.project, p.grants.decide = p.projectOptions, p.decideSafely
	p.grants.revoked = func(g *grant, o outcome) {
		_ = p.guard.run("logging", func() { p.logRevoked(g, o) }) // taking back goes on
	}
	p.foreign = newForeignClients(app.SubscriptionsBroker(), p.grants, foreignLimits{
		messages: config.QueueMessages,
		bytes:    config.QueueBytes,
		timeout:  config.WriteTimeout,
	}, p.logSlowForeign(app))
	p.foreign.guard = p.guard
	p.foreign.quota = p.quota

	own := &registration{plugin: p}
	if app.Store().GetOrSet(pluginKey, func() any { return own }) != any(own) {
		return ErrAlreadyRegistered
	}
	app.Store().Set(pbHooksKey, &pbHooks{plugin: p})

	p.bindHooks(app)

	return nil
}

// From returns the plugin of app, or nil if it has none.
func From(app core.App) *Plugin {
	if app == nil {
		return nil
	}
	if own, ok := app.Store().Get(pluginKey).(*registration); ok {
		return own.plugin
	}
	return nil
}

// outerApp is an app that is not a transaction's, unless the plugin was
// registered in one.
func (p *Plugin) outerApp() core.App {
	if serving := p.serving.Load(); serving != nil {
		return *serving
	}
	return p.registered
}

// app returns the app to decide with: requestApp, unless that is the app of a
// transaction, which others cannot see and which ends.
func (p *Plugin) app(requestApp core.App) core.App {
	if serving := p.serving.Load(); serving != nil && requestApp.IsTransactional() {
		return *serving
	}
	return requestApp
}
