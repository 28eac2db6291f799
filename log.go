package topics

import (
	"context"
	"hash/maphash"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/pocketbase/pocketbase/core"
)

// logPeriod is the time in which a subject is logged once, and for which the
// budget counts.
const logPeriod = time.Minute

// logLimiter keeps what clients can provoke from flooding the app's log. In a
// period each subject is logged once, and all together have a budget of lines,
// of which a quarter is for errors only: refusals do not push them out. At the
// end of a period one line more says how many lines the budget has left out.
type logLimiter struct {
	lines   int
	errors  int // of the lines
	report  func(left int)
	seed    maphash.Seed
	running sync.WaitGroup // report

	mu     sync.Mutex
	closed bool
	start  time.Time // of the period
	used   int
	left   int         // out in this period
	timer  *time.Timer // of its end, nil unless lines were left out
	total  uint64      // left out

	// the subjects that were logged, which are no more than the budget lets
	logged map[uint64]time.Time
	order  []loggedSubject // the oldest first
}

type loggedSubject struct {
	hash uint64
	at   time.Time
}

func newLogLimiter(lines int, report func(left int)) *logLimiter {
	return &logLimiter{
		lines:  lines,
		errors: (lines + 3) / 4,
		report: report,
		seed:   maphash.MakeSeed(),
		logged: map[uint64]time.Time{},
	}
}

// allow reports whether an error may be logged now. Lines of one subject are the
// same to whoever reads the log; an empty one is like no other.
func (l *logLimiter) allow(subject string) bool { return l.take(subject, l.lines) }

// allowRefusal is allow for what is no error of the app, such as a denial.
func (l *logLimiter) allowRefusal(subject string) bool { return l.take(subject, l.lines-l.errors) }

func (l *logLimiter) take(subject string, budget int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()

	now := time.Now()
	l.forget(now)
	hash := maphash.String(l.seed, subject)
	if _, repeated := l.logged[hash]; repeated && subject != "" {
		return false
	}

	if now.Sub(l.start) >= logPeriod && l.timer == nil {
		l.start, l.used = now, 0
	}
	if l.used >= budget {
		l.leaveOut(now)
		return false
	}
	l.used++
	if subject != "" {
		l.logged[hash] = now
		l.order = append(l.order, loggedSubject{hash, now})
	}
	return true
}

// forget expects l.mu to be held.
func (l *logLimiter) forget(now time.Time) {
	gone := 0
	for gone < len(l.order) && now.Sub(l.order[gone].at) >= logPeriod {
		delete(l.logged, l.order[gone].hash)
		gone++
	}
	if l.order = l.order[gone:]; len(l.order) == 0 {
		l.order = nil
	}
}

// leaveOut expects l.mu to be held.
func (l *logLimiter) leaveOut(now time.Time) {
	l.total++
	l.left++
	if l.timer == nil && !l.closed {
		l.running.Add(1)
		l.timer = time.AfterFunc(l.start.Add(logPeriod).Sub(now), func() {
			defer l.running.Done()
			l.endPeriod()
		})
	}
}

func (l *logLimiter) endPeriod() {
	l.mu.Lock()
	left := l.left
	l.left, l.timer, l.used, l.start = 0, nil, 0, time.Time{}
	l.mu.Unlock()

	if left > 0 {
		l.report(left)
	}
}

// omitted returns how many lines the budget has left out.
func (l *logLimiter) omitted() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()

	return l.total
}

// close reports what was left out, and waits for a report that is being made. It
// is safe to call it multiple times.
func (l *logLimiter) close() {
	l.mu.Lock()
	l.closed = true
	stopped := l.timer != nil && l.timer.Stop()
	l.mu.Unlock()

	if stopped {
		l.endPeriod()
		l.running.Done()
	}
	l.running.Wait()
}

// logLeftOut is the last line of a period.
func (p *Plugin) logLeftOut(left int) {
	p.outerApp().Logger().Warn(
		"Left out log lines that clients have provoked, because there were more than Config.LogLines in a minute",
		"lines", left,
		"logLines", p.config.LogLines,
	)
}

// logDenial says in the app's log who was refused what, and why. A rule that
// cannot be evaluated is an error: the operator has to do something.
func (p *Plugin) logDenial(app core.App, topic string, auth *core.Record, a action, d *denial) {
	log, allow := app.Logger().Info, p.logs.allowRefusal
	topic = clip(topic)
	subject := d.code + " " + string(a) + " " + topic
	attrs := []any{"code", d.code, "topic", topic}

	if d.code == codeRuleError {
		if p.closed.Load() {
			return // it was cut off
		}
		log, allow = app.Logger().Error, p.logs.allow
		subject = d.Error()
	}
	if d.code != codeRuleError && !logsInfo(app) || !allow(subject) {
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

// logsInfo reports whether the app's log has lines of this level: those that it
// has not are nothing to leave out.
func logsInfo(app core.App) bool {
	logger := app.Logger()
	return logger.Enabled(context.Background(), slog.LevelInfo)
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
			if !p.logs.allowRefusal("") {
				return
			}
			app.Logger().Warn(
				"Closed a realtime connection because its client stopped reading or is gone (write timeout)",
				"code", code,
				"clientId", c.id,
				"writeTimeout", p.config.WriteTimeout.String(),
			)
			return
		}
		p.counters.slowConsumers.Add(1)
		if !p.logs.allowRefusal("") {
			return
		}
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
		if !p.logs.allowRefusal("") {
			return
		}
		app.Logger().Warn(
			"Unregistered a realtime client of the app's own code because it did not keep up (slow consumer)",
			"code", codeSlowConsumer,
			"clientId", id,
		)
	}
}

// logRevoked says who lost a subscription, and why.
func (p *Plugin) logRevoked(g *grant, o outcome) {
	log, allow := g.app.Logger().Info, p.logs.allowRefusal
	subject := codeRevoked + " " + string(g.key.action) + " " + g.key.topic + " " + g.key.auth.id
	attrs := []any{"code", codeRevoked, "topic", g.key.topic, "reason", o.reason}

	if o.denial.code == codeRuleError {
		log, allow = g.app.Logger().Error, p.logs.allow
		subject = codeRevoked + " " + o.denial.Error()
	}
	if o.denial.code != codeRuleError && !logsInfo(g.app) || !allow(subject) {
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
