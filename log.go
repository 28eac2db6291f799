package topics

import (
	"strings"
	"sync"
	"time"

	"github.com/pocketbase/pocketbase/core"
)

const (
	logPause    = time.Minute
	logSubjects = 1000
)

// logLimiter keeps what clients can provoke from flooding the app's log: each
// subject is logged at most once a minute.
type logLimiter struct {
	mu   sync.Mutex
	last map[string]time.Time
}

func newLogLimiter() *logLimiter {
	return &logLimiter{last: map[string]time.Time{}}
}

func (l *logLimiter) allow(subject string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()

	now := time.Now()
	if now.Sub(l.last[subject]) < logPause {
		return false
	}
	if len(l.last) >= logSubjects {
		clear(l.last)
	}
	l.last[subject] = now

	return true
}

// logDenial says in the app's log who was refused what, and why. A rule that
// cannot be evaluated is an error: the operator has to do something.
func (p *Plugin) logDenial(app core.App, topic string, auth *core.Record, a action, d *denial) {
	log := app.Logger().Info
	topic = clip(topic)
	subject := d.code + " " + string(a) + " " + topic
	attrs := []any{"code", d.code, "topic", topic}

	if d.code == codeRuleError {
		if p.closed.Load() {
			return // it was cut off
		}
		log = app.Logger().Error
		subject = clip(d.Error())
	}
	if !p.logs.allow(subject) {
		return
	}

	if auth != nil {
		attrs = append(attrs, "authId", auth.Id, "authCollection", auth.Collection().Name)
	}
	if d.cause != nil {
		attrs = append(attrs, "error", d.cause.Error())
	}

	log("Refused to let a client "+string(a)+" a topic", attrs...)
}

// clip returns the beginning of clients' text. What it returns may be kept: it
// does not refer to the rest.
func clip(s string) string {
	if len(s) > maxTopicLength {
		return strings.ToValidUTF8(s[:maxTopicLength], "") + "…"
	}
	return strings.Clone(s)
}

// logClosed says why the plugin has closed a connection, and counts it.
func (p *Plugin) logClosed(app core.App) func(*client, string) {
	return func(c *client, code string) {
		if code == codeWriteTimeout {
			p.counters.writeTimeouts.Add(1)
			app.Logger().Warn(
				"Closed a realtime connection because its client stopped reading or is gone (write timeout)",
				"code", code,
				"clientId", c.id,
				"writeTimeout", p.config.WriteTimeout.String(),
			)
			return
		}
		p.counters.slowConsumers.Add(1)
		topics, records := c.queued()
		app.Logger().Warn(
			"Closed a realtime connection because its client did not keep up (slow consumer)",
			"code", code,
			"clientId", c.id,
			"queuedMessages", topics.messages,
			"queueMessages", p.config.QueueMessages,
			"queuedBytes", topics.bytes,
			"queueBytes", p.config.QueueBytes,
			"queuedRecords", records.messages,
			"queuedRecordBytes", records.bytes,
			"recordQueueBytes", p.config.RecordQueueBytes,
		)
	}
}

func (p *Plugin) logSlowForeign(app core.App) func(string) {
	return func(id string) {
		p.counters.slowConsumers.Add(1)
		app.Logger().Warn(
			"Unregistered a realtime client of the app's own code because it did not keep up (slow consumer)",
			"code", codeSlowConsumer,
			"clientId", id,
		)
	}
}

// logRevoked says who lost a subscription, and why.
func (p *Plugin) logRevoked(g *grant, o outcome) {
	log, subject := g.app.Logger().Info, codeRevoked+" "+string(g.key.action)+" "+g.key.topic+" "+g.key.auth.id
	attrs := []any{"code", codeRevoked, "topic", g.key.topic, "reason", o.reason}

	if o.denial.code == codeRuleError {
		log, subject = g.app.Logger().Error, clip(codeRevoked+" "+o.denial.Error())
	}
	if !p.logs.allow(subject) {
		return
	}

	if g.key.auth.id != "" {
		attrs = append(attrs, "authId", g.key.auth.id, "authCollection", g.key.auth.collection)
	}
	if o.denial.cause != nil {
		attrs = append(attrs, "error", o.denial.cause.Error())
	}

	if g.key.action == actionPresence {
		log("Took the members of a topic back from those who watched them", attrs...)
		return
	}
	log("Took a topic back from its subscribers", attrs...)
}
