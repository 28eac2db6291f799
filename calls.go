package topics

import (
	"container/list"
	"sync"
	"sync/atomic"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
)

// TopicEvent is the event of [Plugin.OnOccupied] and [Plugin.OnVacated].
type TopicEvent struct {
	hook.Event

	App   core.App
	Topic string

	// Pattern is that of the topic's rule, or empty.
	Pattern string
}

// Tags implements [hook.Tagger].
func (e *TopicEvent) Tags() []string { return []string{e.Topic, e.Pattern} }

// MemberEvent is the event of [Plugin.OnJoin] and [Plugin.OnLeave].
type MemberEvent struct {
	TopicEvent

	Member Member
}

// OnOccupied is triggered when a topic gets its first subscriber, whatever its
// rule says. Superusers count, and so do clients that Go code has subscribed.
// With tags it is only for these topics or patterns, as in
// OnOccupied("room/{room}").
//
// The handlers of this and the other hooks of presence run after the fact, on
// goroutines of the plugin: those of one topic one after the other, in order.
// A handler that is slow delays only its topic's (and, if there are many such,
// others); what has been undone before its turn came is not told at all. An
// error or panic is logged. While the app terminates no more handlers start.
func (p *Plugin) OnOccupied(tags ...string) *hook.TaggedHook[*TopicEvent] {
	p.calls.wantsTopics.Store(true)
	return hook.NewTaggedHook(p.calls.occupied, tags...)
}

// OnVacated is triggered when the last subscriber of a topic has been gone for
// [Config.PresenceGrace]: once for each OnOccupied.
func (p *Plugin) OnVacated(tags ...string) *hook.TaggedHook[*TopicEvent] {
	p.calls.wantsTopics.Store(true)
	return hook.NewTaggedHook(p.calls.vacated, tags...)
}

// OnJoin is triggered when somebody becomes a member of a topic whose rule says
// presence. Members who are back within the grace after a restart of the server
// do not join again.
func (p *Plugin) OnJoin(tags ...string) *hook.TaggedHook[*MemberEvent] {
	p.calls.wantsMembers.Store(true)
	return hook.NewTaggedHook(p.calls.joined, tags...)
}

// OnLeave is triggered when somebody is no member any more. It is once for each
// OnJoin, also if that was before a restart of the server: unless nobody has
// used the topic within the grace after it.
func (p *Plugin) OnLeave(tags ...string) *hook.TaggedHook[*MemberEvent] {
	p.calls.wantsMembers.Store(true)
	return hook.NewTaggedHook(p.calls.left, tags...)
}

// callWorkers is how many topics' handlers may run at once.
const callWorkers = 8

// hookCalls runs the app's handlers, where nobody waits for them. What waits
// is bounded by the members and topics: a call that takes back one which has
// not run yet ends both.
type hookCalls struct {
	occupied, vacated *hook.Hook[*TopicEvent]
	joined, left      *hook.Hook[*MemberEvent]

	// whether anybody has asked for the hooks. (How many handlers a hook has, it
	// only tells by a lock of its own, and a topic's lock is held.)
	wantsTopics, wantsMembers atomic.Bool

	trigger func(call) error
	failed  func(call, error)
	guard   *guard

	running sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	topics  map[string]*topicCalls // with calls
	waiting []string               // topics that no worker has
	workers int
}

type topicCalls struct {
	calls     *list.List // call
	bySubject map[memberKey]*list.Element
}

type callKind int

const (
	callOccupied callKind = iota
	callVacated
	callJoin
	callLeave
)

type call struct {
	kind   callKind
	topic  string
	key    memberKey // zero for the topic itself
	member Member
}

func newHookCalls() *hookCalls {
	return &hookCalls{
		occupied: new(hook.Hook[*TopicEvent]),
		vacated:  new(hook.Hook[*TopicEvent]),
		joined:   new(hook.Hook[*MemberEvent]),
		left:     new(hook.Hook[*MemberEvent]),
		topics:   map[string]*topicCalls{},
	}
}

// add does not block: a topic's lock may be held.
func (hc *hookCalls) add(c call) {
	hc.mu.Lock()
	defer hc.mu.Unlock()

	if hc.closed {
		return
	}
	of := hc.topics[c.topic]
	if of == nil {
		of = &topicCalls{calls: list.New(), bySubject: map[memberKey]*list.Element{}}
		hc.topics[c.topic] = of
		hc.waiting = append(hc.waiting, c.topic)
	}
	if undone := of.bySubject[c.key]; undone != nil {
		of.calls.Remove(undone)
		delete(of.bySubject, c.key)
		return
	}
	of.bySubject[c.key] = of.calls.PushBack(c)

	if len(hc.waiting) > 0 && hc.workers < callWorkers {
		hc.workers++
		hc.running.Go(hc.work)
	}
}

// work runs the calls of one topic after the other, until there are no more.
func (hc *hookCalls) work() {
	for {
		topic, ok := hc.takeTopic()
		if !ok {
			return
		}
		for {
			c, ok := hc.takeCall(topic)
			if !ok {
				break
			}
			hc.run(c)
		}
	}
}

func (hc *hookCalls) takeTopic() (topic string, ok bool) {
	hc.mu.Lock()
	defer hc.mu.Unlock()

	if len(hc.waiting) == 0 || hc.closed {
		hc.workers--
		return "", false
	}
	topic, hc.waiting = hc.waiting[0], hc.waiting[1:]
	return topic, true
}

func (hc *hookCalls) takeCall(topic string) (c call, ok bool) {
	hc.mu.Lock()
	defer hc.mu.Unlock()

	of := hc.topics[topic]
	if of.calls.Len() == 0 || hc.closed {
		delete(hc.topics, topic)
		return call{}, false
	}
	c = of.calls.Remove(of.calls.Front()).(call)
	delete(of.bySubject, c.key)
	return c, true
}

func (hc *hookCalls) run(c call) {
	var err error
	if panicked := recovered(func() { err = hc.trigger(c) }); panicked != nil {
		err = panicked
	}
	if err != nil {
		_ = hc.guard.run("logging a failed handler", func() { hc.failed(c, err) })
	}
}

// close starts no more handlers.
func (hc *hookCalls) close() {
	hc.mu.Lock()
	defer hc.mu.Unlock()

	hc.closed = true
}

// triggerCall runs the app's handlers for a call.
func (p *Plugin) triggerCall(c call) error {
	app := p.outerApp()
	e := TopicEvent{App: app, Topic: c.topic}
	if d, err := p.rules.find(app, c.topic); err == nil && d != nil {
		e.Pattern = d.pattern.raw
	}
	switch c.kind {
	case callOccupied:
		return p.calls.occupied.Trigger(&e)
	case callVacated:
		return p.calls.vacated.Trigger(&e)
	case callJoin:
		return p.calls.joined.Trigger(&MemberEvent{TopicEvent: e, Member: c.member})
	default:
		return p.calls.left.Trigger(&MemberEvent{TopicEvent: e, Member: c.member})
	}
}

func (p *Plugin) logCallError(c call, err error) {
	name := [...]string{"OnOccupied", "OnVacated", "OnJoin", "OnLeave"}[c.kind]
	if !p.logs.allow(name + " " + err.Error()) {
		return
	}
	p.outerApp().Logger().Error(
		"A handler of a presence hook has failed",
		"hook", name,
		"topic", c.topic,
		"error", err.Error(),
	)
}
