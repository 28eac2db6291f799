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

	// HistoryBacklog are messages of histories that are not on the disk yet.
	HistoryBacklog int `json:"historyBacklog"`

	// Published are the messages handed to this process's subscribers.
	Published uint64 `json:"published"`

	// SlowConsumers are clients closed because their queue was full, and
	// WriteTimeouts those closed because a write to them blocked or was not
	// acknowledged.
	SlowConsumers uint64 `json:"slowConsumers"`
	WriteTimeouts uint64 `json:"writeTimeouts"`
}

type counters struct {
	published, slowConsumers, writeTimeouts atomic.Uint64
}

// Stats counts what the plugin has to do and has done. It looks at every
// connection, so a few calls a minute are fine and one per message is not.
func (p *Plugin) Stats() Stats {
	s := Stats{
		Published:     p.counters.published.Load(),
		SlowConsumers: p.counters.slowConsumers.Load(),
		WriteTimeouts: p.counters.writeTimeouts.Load(),
	}
	p.hub.clients.Range(func(c, _ any) bool {
		messages, bytes := c.(*client).queued()
		s.Connections++
		s.QueuedMessages += messages
		s.QueuedBytes += bytes
		return true
	})
	if d := p.history.disk; d != nil {
		d.mu.Lock()
		s.HistoryBacklog = int(d.added - d.done)
		d.mu.Unlock()
	}
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
