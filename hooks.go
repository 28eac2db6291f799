package topics

import (
	"context"
	"math"
	"time"

	validation "github.com/pocketbase/ozzo-validation/v4"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/core/validators"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/pbtopics/topics/migrations"
)

// Priorities of the handlers, where the order matters.
const (
	// first: nobody else's handler may skip a message that wakes our writer
	first = math.MinInt

	// last: what we authorise is what core gets, and our client is outermost
	last = math.MaxInt
)

// bindHooks is the only place that binds hooks of the app. The handlers are
// found by their ids.
func (p *Plugin) bindHooks(app core.App) {
	app.OnServe().Bind(&hook.Handler[*core.ServeEvent]{Id: "topicsServe", Func: p.onServe})
	app.OnTerminate().Bind(&hook.Handler[*core.TerminateEvent]{Id: "topicsTerminate", Func: p.onTerminate})

	app.OnRealtimeConnectRequest().Bind(&hook.Handler[*core.RealtimeConnectRequestEvent]{Id: "topicsConnect", Func: p.onConnect, Priority: last})
	app.OnRealtimeSubscribeRequest().Bind(&hook.Handler[*core.RealtimeSubscribeRequestEvent]{Id: "topicsSubscribe", Func: p.onSubscribe, Priority: last})
	app.OnRealtimeMessageSend().Bind(&hook.Handler[*core.RealtimeMessageEvent]{Id: "topicsSend", Func: p.onSend, Priority: first})

	// by the collection's id, which survives a rename
	rules := migrations.CollectionID
	app.OnRecordValidate(rules).Bind(&hook.Handler[*core.RecordEvent]{Id: "topicsValidate", Func: p.onRuleValidate})
	app.OnRecordAfterCreateSuccess(rules).Bind(&hook.Handler[*core.RecordEvent]{Id: "topicsRuleCreated", Func: p.onRuleSaved})
	app.OnRecordAfterUpdateSuccess(rules).Bind(&hook.Handler[*core.RecordEvent]{Id: "topicsRuleUpdated", Func: p.onRuleSaved})

	app.OnCollectionDelete(rules).Bind(&hook.Handler[*core.CollectionEvent]{Id: "topicsRulesDelete", Func: guardCollection})
	app.OnCollectionDeleteRequest().Bind(&hook.Handler[*core.CollectionRequestEvent]{Id: "topicsRulesDelete", Func: explainGuardedDelete})
	app.OnCollectionsImportRequest().Bind(&hook.Handler[*core.CollectionsImportRequestEvent]{Id: "topicsRulesImport", Func: explainGuardedImport})

	// writes, as close to the database as possible
	app.OnModelCreateExecute().Bind(&hook.Handler[*core.ModelEvent]{Id: "topicsCreate", Func: p.onWrite, Priority: last})
	app.OnModelUpdateExecute().Bind(&hook.Handler[*core.ModelEvent]{Id: "topicsUpdate", Func: p.onWrite, Priority: last})
	app.OnModelDeleteExecute().Bind(&hook.Handler[*core.ModelEvent]{Id: "topicsDelete", Func: p.onWrite, Priority: last})

	app.OnModelCreateExecute().Bind(&hook.Handler[*core.ModelEvent]{Id: "topicsRecordCreated", Func: p.onRecordEnd, Priority: last})
	app.OnModelUpdateExecute().Bind(&hook.Handler[*core.ModelEvent]{Id: "topicsRecordRenamed", Func: p.onRecordRenamed, Priority: last})
	app.OnModelDeleteExecute().Bind(&hook.Handler[*core.ModelEvent]{Id: "topicsRecordDeleted", Func: p.onRecordEnd, Priority: last})

	// a collection that appears, is renamed or goes changes what rules mean
	app.OnCollectionAfterCreateSuccess().Bind(&hook.Handler[*core.CollectionEvent]{Id: "topicsCollectionCreated", Func: p.onCollectionChanged, Priority: first})
	app.OnCollectionAfterUpdateSuccess().Bind(&hook.Handler[*core.CollectionEvent]{Id: "topicsCollectionUpdated", Func: p.onCollectionChanged, Priority: first})
	app.OnCollectionAfterDeleteSuccess().Bind(&hook.Handler[*core.CollectionEvent]{Id: "topicsCollectionDeleted", Func: p.onCollectionChanged, Priority: first})
}

func (p *Plugin) onServe(e *core.ServeEvent) error {
	p.serving.Store(&e.App)
	restoreCollection(e.App)
	p.rules.serve()
	keepConns(e.Server)
	p.openDisk(e.App)
	p.bindRoutes(e)
	bindDashboard(e)

	return e.Next()
}

func (p *Plugin) onTerminate(e *core.TerminateEvent) error {
	ctx, cancel := context.WithTimeout(context.Background(), p.config.WriteTimeout)
	defer cancel()

	if err := p.close(ctx, e.App); err != nil {
		e.App.Logger().Error("Failed to close the topics plugin", "error", err.Error())
	}

	return e.Next()
}

func (p *Plugin) onConnect(e *core.RealtimeConnectRequestEvent) error {
	peer := clientAddress(e.RequestEvent)
	address := addressOwner(peer)
	if !p.quota.connect(address) {
		return p.refuseConnection(e)
	}
	defer p.quota.disconnect(address)
	if address == "" {
		p.noteUncounted(e.App)
	}

	c := newClient(e.Client, p.hub, p.grants, e.Response, clientLimits{
		messages:     p.config.QueueMessages,
		bytes:        p.config.QueueBytes,
		recordBytes:  p.config.RecordQueueBytes,
		writeTimeout: p.config.WriteTimeout,
		heartbeat:    p.config.Heartbeat,
	}, p.logClosed(e.App))

	c.guest = guestOwner(peer, c.id)
	c.peer = newDeadPeer(e.Request, p.config.WriteTimeout, func() {
		_ = p.guard.run("closing a dead connection", c.closeDead) // it is logged
	}, c.conn.extend)
	defer c.peer.stop()

	p.hub.clients.Store(c, struct{}{})
	defer func() {
		p.hub.clients.Delete(c)
		c.Discard()
		c.conn.release()
	}()

	// after the store: whoever closes the hub either finds the client or is seen here
	if p.closed.Load() {
		return e.InternalServerError("The server is shutting down.", ErrClosed)
	}

	e.Client = c

	return e.Next()
}

func (p *Plugin) refuseConnection(e *core.RealtimeConnectRequestEvent) error {
	p.counters.connectionsRefused.Add(1)
	message := "Your address has too many realtime connections. Close some, then connect again."

	return e.TooManyRequestsError(message, validation.Errors{"address": validation.NewError(codeAddressConnections, message)})
}

// noteUncounted says once that addresses are not counted, if that is because the
// server does not know which proxy to believe.
func (p *Plugin) noteUncounted(app core.App) {
	if len(app.Settings().TrustedProxy.Headers) > 0 || p.uncounted.Swap(true) {
		return
	}
	app.Logger().Info("Realtime connections are not counted by address, because they come from a private or loopback address. Behind a proxy, name its header in the settings under Trusted proxy.")
}

func (p *Plugin) onSend(e *core.RealtimeMessageEvent) error {
	if c := ownClient(e.Client); c != nil {
		return c.write(e)
	}
	return e.Next()
}

func (p *Plugin) onRuleValidate(e *core.RecordEvent) error {
	err := e.Next()

	return validators.JoinValidationErrors(err, validateRecord(e.App, e.Record))
}

func (p *Plugin) onRuleSaved(e *core.RecordEvent) error {
	warnOfGuests(e.App, e.Record)
	warnOfAccounts(e.App, e.Record)

	return e.Next()
}

func (p *Plugin) onCollectionChanged(e *core.CollectionEvent) error {
	// before and after, because core refreshes its cache of collections in between
	p.rulesChanged()
	defer p.rulesChanged()

	return e.Next()
}

// rulesChanged makes every decision stale: which rule a topic has, or what its
// words mean, may be another now.
func (p *Plugin) rulesChanged() {
	p.rules.changed()
	p.grants.touchAll()
}

func (p *Plugin) onWrite(e *core.ModelEvent) error {
	c := collectionOf(e.App, e.Model)
	if c == nil && p.isAuxiliary(e) {
		return e.Next()
	}
	var fields []string
	if c != nil {
		fields = p.grants.watches.fieldsOf(c.Id)
	}
	return p.writes.during(e.App, e.Model, c, fields, e.Next)
}

// onWritten is called when a write is committed (or rolled back), before any
// success hook.
func (p *Plugin) onWritten(w written) {
	p.grants.touch(p.grants.watches.touched(w.collection, w.known, w.rows))

	if w.collection == migrations.CollectionID {
		p.rulesChanged()
		// before rules that come later could show what these do not keep
		p.history.review(time.Now())
	}
}
