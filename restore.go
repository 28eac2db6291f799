package topics

import (
	"context"
	"database/sql"
	"errors"
	"runtime"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/routine"
	"github.com/pocketbase/pocketbase/tools/security"
	"golang.org/x/sync/errgroup"
)

// Members survive a restart: they are on the disk while they are members, and
// after the start they are in their grace.

// save puts on the disk what has changed. It does not block.
func (p *presence) save(topic string, c changes) {
	if p.disk == nil || p.grace == 0 {
		return // nobody comes back
	}
	for _, list := range [][]*member{c.joined, c.updated} {
		for _, m := range list {
			p.disk.saveMember(topic, m, false)
		}
	}
	for _, m := range c.left {
		p.disk.saveMember(topic, m, true)
	}
}

func (d *disk) saveMember(topic string, m *member, gone bool) {
	if !m.lasting {
		return
	}
	d.addState("member\x00"+topic+"\x00"+m.key.collection+"\x00"+m.key.id,
		&memberWrite{topic: topic, key: m.key, state: m.state, since: m.since, gone: gone})
}

const (
	// aliveEvery is how often the disk is told that there are members.
	aliveEvery = 30 * time.Second

	// outage is how long the server may have been away for members of then to
	// be looked for. The last that is known of it can be so much older.
	outage = time.Minute
)

// restore lets members from before the start come back until the grace is over.
func (p *presence) restore(left leftBehind) {
	p.secret.Store(&left.secret)
	p.mu.Lock()
	p.at(time.Now().Add(aliveEvery)).alive = true
	p.mu.Unlock()
	p.wakeUp()
	if time.Since(left.alive) > outage+aliveEvery {
		p.disk.addState("", oldMembersEnd{})
		return
	}

	until := time.Now().Add(p.grace)
	p.restoring.Store(until.UnixNano())

	p.mu.Lock()
	p.at(until).restored = true
	p.mu.Unlock()
	p.wakeUp()
}

// stayAlive tells the disk that there are members, so that a restart looks for
// them.
func (p *presence) stayAlive() {
	if p.hub.anyMembers() {
		p.disk.addState("alive", membersAlive{})
	}
	p.mu.Lock()
	p.at(time.Now().Add(aliveEvery)).alive = true
	p.mu.Unlock()
}

func (h *hub) anyMembers() bool {
	for i := range h.shards {
		shard := &h.shards[i]
		shard.mu.Lock()
		found := len(shard.members) > 0
		shard.mu.Unlock()
		if found {
			return true
		}
	}
	return false
}

func (p *presence) endRestore() {
	p.mu.Lock()
	p.restoring.Store(0)
	clear(p.restored)
	p.mu.Unlock()
	p.disk.addState("", oldMembersEnd{})
}

// takeRestore lets one caller restore a topic. The others may wait for done.
func (p *presence) takeRestore(topic string) (done chan struct{}, first bool) {
	p.mu.Lock()
	defer p.mu.Unlock()

	if p.restoring.Load() == 0 {
		return nil, false // it is over
	}
	done = p.restored[topic]
	if done == nil {
		done = make(chan struct{})
		p.restored[topic] = done
		first = true
	}
	return done, first
}

// openMembers makes the members from before a restart those of the topic again,
// if its rule still lets them be there. It is called before the topic's lock is
// taken. A handler of OnRecordEnrich, which it may call, must not wait for it.
func (p *Plugin) openMembers(app core.App, topic string, wait bool) {
	until := p.presence.restoring.Load()
	if until == 0 {
		return
	}
	done, first := p.presence.takeRestore(topic)
	if first {
		defer close(done)
		if err := p.restoreMembers(app, topic, time.Unix(0, until)); err != nil {
			p.logPresenceError(app, topic, err)
		}
	} else if wait && done != nil {
		// not for ever: an app's handler may hang, and who comes late is told
		select {
		case <-done:
		case <-time.After(decisionTimeout):
		}
	}
}

func (p *Plugin) restoreMembers(app core.App, topic string, until time.Time) error {
	saved, err := p.presence.disk.members(p.life, app, topic)
	if err != nil {
		return err
	}

	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	for _, m := range saved {
		group.Go(routine.SafeWrap(func() error { return p.restoreMember(app, m, until) }))
	}
	return group.Wait()
}

// restoreMember puts a member into its grace, or says that it has left if it
// may not be there any more.
func (p *Plugin) restoreMember(app core.App, saved memberWrite, until time.Time) error {
	var auth credentials
	if saved.key.collection != "" {
		record, err := app.FindRecordById(saved.key.collection, saved.key.id)
		if errors.Is(err, sql.ErrNoRows) {
			p.presence.outlived(app, saved)
			return nil
		}
		if err != nil {
			return err
		}
		auth = credentialsFor(record)
	}

	g, denied := p.grants.admit(app, actionSubscribe, saved.topic, noOptions(), auth)
	if denied != nil && denied.code == codeRuleError {
		return denied // nobody knows
	}
	if denied != nil {
		p.presence.outlived(app, saved)
		return nil
	}
	id := g.identity.Load()
	if id == nil || id.guest != (saved.key.collection == "") {
		p.grants.release(g)
		p.presence.outlived(app, saved)
		return nil
	}
	p.presence.place(saved, id, g, until)
	return nil
}

// outlived says that a member has left while the server was stopped, unless it
// is back.
func (p *presence) outlived(app core.App, saved memberWrite) {
	m := &member{key: saved.key, since: saved.since, lasting: true, state: saved.state}
	if c, err := app.FindCachedCollectionByNameOrId(saved.key.collection); err == nil {
		m.collection = c.Name
	}

	shard := p.hub.shard(saved.topic)
	shard.mu.Lock()
	defer shard.mu.Unlock()

	if tm := shard.members[saved.topic]; tm != nil && tm.byKey[saved.key] != nil {
		return
	}
	left := changes{left: []*member{m}}
	p.save(saved.topic, left)
	p.call(saved.topic, left)
}

// place puts a member from before into its grace, unless it is there already.
// It takes over the reference to the grant.
func (p *presence) place(saved memberWrite, id *identity, g *grant, until time.Time) {
	shard := p.hub.shard(saved.topic)
	shard.mu.Lock()
	defer shard.mu.Unlock()

	tm := p.members(shard, saved.topic)
	if tm.byKey[saved.key] != nil {
		p.grants.release(g)
		return
	}
	m := &member{key: saved.key, since: saved.since, lasting: true}
	a := &attendee{presence: p, topic: saved.topic, key: saved.topic, member: m, grant: g}
	m.attendees = []*attendee{a}
	if saved.state != nil {
		p.setState(a, saved.state)
	}
	tm.byKey[saved.key] = m
	tm.mark(m, true) // so that it is on the disk as one of this run
	for s := range tm.watchers {
		s.due = true // it could not be read before
	}
	p.grants.hold(g, a)
	p.linger(a, until)
	if newest := g.identity.Load(); newest != nil {
		id = newest // it was decided anew before it had this holder
	}
	tm.refresh(m, id)
	p.changed(shard, tm)
}

// members reads those of a topic that an earlier run has left.
func (d *disk) members(ctx context.Context, app core.App, topic string) ([]memberWrite, error) {
	db, err := d.reader(app)
	if errors.Is(err, errNotReady) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, decisionTimeout)
	defer cancel()

	rows, err := db.QueryContext(ctx, "SELECT collection, id, state, since FROM _topicsMembers WHERE topic = ? AND run <> ? ORDER BY since", topic, d.run)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // rows.Err says what there is to say

	var list []memberWrite
	for rows.Next() {
		var (
			m     = memberWrite{topic: topic}
			state string
			since int64
		)
		if err := rows.Scan(&m.key.collection, &m.key.id, &state, &since); err != nil {
			return nil, err
		}
		if state != "" {
			m.state = []byte(state)
		}
		m.since = time.Unix(0, since)
		list = append(list, m)
	}
	return list, rows.Err()
}

// newSecret is what guests' ids are made with. It outlives the process with the
// disk.
func newSecret() string { return security.RandomString(32) }
