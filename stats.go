package topics

import "sync/atomic"

// Stats is what [Plugin.Stats] counts. The totals start with the process.
type Stats struct {
	// Connections are open event streams, and Topics those with subscribers.
	Connections int `json:"connections"`
	Topics      int `json:"topics"`

	// Members are those of all topics. Somebody on two of them counts twice.
	Members int `json:"members"`

	// QueuedMessages and QueuedBytes wait for clients or are being written to
	// them. A message that waits for several clients is counted several times,
	// though it is in memory once.
	QueuedMessages int `json:"queuedMessages"`
	QueuedBytes    int `json:"queuedBytes"`

	// QueuedRecords and QueuedRecordBytes are those of them that PocketBase
	// itself sends, such as record events, or Go code does by client.Send.
	QueuedRecords     int `json:"queuedRecords"`
	QueuedRecordBytes int `json:"queuedRecordBytes"`

	// Histories are the topics that keep messages, HistoryBytes what these take
	// in memory, and HistoryDiskBytes what they take on the disk.
	Histories        int `json:"histories"`
	HistoryBytes     int `json:"historyBytes"`
	HistoryDiskBytes int `json:"historyDiskBytes"`

	// HistoryBacklog are messages of histories that are not on the disk yet,
	// and HistoryLag is how long the first of them has waited, in milliseconds:
	// what was sent in this time would be lost by a kill of the process.
	HistoryBacklog int   `json:"historyBacklog"`
	HistoryLag     int64 `json:"historyLag"`

	// Positions are those of the resume option.
	Positions int `json:"positions"`

	// HistoriesEvicted are topics that lost their history, PositionsEvicted
	// positions that were dropped, both for a limit, and TopicsRefused topics
	// that a sender was not let begin.
	HistoriesEvicted uint64 `json:"historiesEvicted"`
	PositionsEvicted uint64 `json:"positionsEvicted"`
	TopicsRefused    uint64 `json:"topicsRefused"`

	// Published are the messages handed to this process's subscribers.
	Published uint64 `json:"published"`

	// SlowConsumers are clients closed because their queue was full, and
	// WriteTimeouts those closed because a write to them blocked or was not
	// acknowledged.
	SlowConsumers uint64 `json:"slowConsumers"`
	WriteTimeouts uint64 `json:"writeTimeouts"`

	// IdempotencyKeys are remembered now. IdempotencyKeysEvicted were forgotten
	// before their 5 minutes were over, because their sender, or all senders
	// together, had too many.
	IdempotencyKeys        int    `json:"idempotencyKeys"`
	IdempotencyKeysEvicted uint64 `json:"idempotencyKeysEvicted"`

	// LogLinesOmitted were left out of the app's log because clients had provoked
	// [Config.LogLines] of that minute already.
	LogLinesOmitted uint64 `json:"logLinesOmitted"`

	// SubscriptionsRefused are keys denied because a connection or an account
	// had too many, counted in each request that has them, and
	// ConnectionsRefused the connections beyond [Config.MaxConnectionsPerAddress].
	SubscriptionsRefused uint64 `json:"subscriptionsRefused"`
	ConnectionsRefused   uint64 `json:"connectionsRefused"`
}

type counters struct {
	published, slowConsumers, writeTimeouts  atomic.Uint64
	subscriptionsRefused, connectionsRefused atomic.Uint64
}

// Stats counts what the plugin has to do and has done. It looks at every
// connection, so a few calls a minute are fine and one per message is not.
func (p *Plugin) Stats() Stats {
	s := Stats{
		Published:     p.counters.published.Load(),
		SlowConsumers: p.counters.slowConsumers.Load(),
		WriteTimeouts: p.counters.writeTimeouts.Load(),

		SubscriptionsRefused: p.counters.subscriptionsRefused.Load(),
		ConnectionsRefused:   p.counters.connectionsRefused.Load(),
	}
	s.IdempotencyKeys, s.IdempotencyKeysEvicted = p.repeats.count()
	s.LogLinesOmitted = p.logs.omitted()
	p.hub.clients.Range(func(c, _ any) bool {
		topics, records := c.(*client).queued()
		s.Connections++
		s.QueuedMessages += topics.messages + records.messages
		s.QueuedBytes += topics.bytes + records.bytes
		s.QueuedRecords += records.messages
		s.QueuedRecordBytes += records.bytes
		return true
	})
	p.history.stats(&s)
	for i := range p.hub.shards {
		shard := &p.hub.shards[i]
		shard.mu.Lock()
		s.Topics += len(shard.topics)
		for _, tm := range shard.members {
			s.Members += len(tm.byKey)
		}
		shard.mu.Unlock()
	}
	return s
}
