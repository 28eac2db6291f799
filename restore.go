package topics

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
)

// Members survive a restart: they are on the disk while they are members, and
// after the start they are in their grace.

// savedMember is a member on the disk.
type savedMember struct {
	topic   string
	key     memberKey
	options string // of the subscription key that let it in
	state   []byte
	since   time.Time
	gone    bool // it is to be deleted
}

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
	s := savedMember{topic: topic, key: m.key, state: m.state, since: m.since, gone: gone}
	if n := len(m.attendees); n > 0 {
		s.options = m.attendees[n-1].options
	}
	d.add(diskWrite{member: &s})
}

// restore lets members from before the start come back until the grace is over.
func (p *presence) restore() {
	until := time.Now().Add(p.grace)
	p.restoring.Store(until.UnixNano())

	p.mu.Lock()
	p.at(until).restored = true
	p.mu.Unlock()
	p.wakeUp()
}

func (p *presence) endRestore() {
	p.restoring.Store(0)
	p.mu.Lock()
	clear(p.restored)
	p.mu.Unlock()
	p.disk.add(diskWrite{forgetMembers: true})
}

func (p *presence) isRestored(topic string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()

	_, done := p.restored[topic]
	return done
}

// openMembers makes the members from before a restart those of the topic again,
// if its rule still lets them be there. It is called before the topic's lock is
// taken.
func (p *Plugin) openMembers(app core.App, topic string) {
	until := p.presence.restoring.Load()
	if until == 0 || p.presence.isRestored(topic) {
		return
	}
	_, err, _ := p.presence.restores.Do(topic, func() (any, error) {
		if p.presence.isRestored(topic) {
			return nil, nil
		}
		saved, err := p.presence.disk.members(app, topic)
		if err != nil {
			return nil, err
		}
		for _, m := range saved {
			if err := p.restoreMember(app, m, time.Unix(0, until)); err != nil {
				return nil, err
			}
		}
		p.presence.mu.Lock()
		p.presence.restored[topic] = struct{}{}
		p.presence.mu.Unlock()
		return nil, nil
	})
	if err != nil {
		p.logPresenceError(app, topic, err)
	}
}

func (p *Plugin) restoreMember(app core.App, saved savedMember, until time.Time) error {
	var auth credentials
	if saved.key.collection != "" {
		record, err := app.FindRecordById(saved.key.collection, saved.key.id)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		auth = credentialsFor(record)
	}

	key := saved.topic + saved.options
	g := p.grants.acquire(app, actionSubscribe, key, parseKeys([]string{key})[key], auth)
	denied := p.grants.decideFor(g)
	id := g.identity.Load()
	if denied != nil || id == nil {
		p.grants.release(g)
		return nil
	}

	p.presence.place(saved, id, g, until)
	return nil
}

// place puts a member from before into its grace, unless it is there already.
// It takes over the reference to the grant.
func (p *presence) place(saved savedMember, id *identity, g *grant, until time.Time) {
	shard := p.hub.shard(saved.topic)
	shard.mu.Lock()
	defer shard.mu.Unlock()

	tm := p.members(shard, saved.topic)
	if tm.byKey[saved.key] != nil {
		p.grants.release(g)
		return
	}
	m := &member{key: saved.key, since: saved.since, lasting: true}
	a := &attendee{presence: p, topic: saved.topic, member: m, options: saved.options, grant: g}
	if saved.state != nil {
		p.setState(a, saved.state)
	}
	m.attendees = []*attendee{a}
	tm.byKey[saved.key] = m
	tm.mark(m, true) // so that it is on the disk as one of this run
	for s := range tm.watchers {
		s.due = true // it could not be read before
	}
	p.grants.hold(g, a)
	p.linger(a, until)
	tm.refresh(m, id)
	p.changed(shard, tm)
}

// members reads those of a topic that an earlier run has left.
func (d *disk) members(app core.App, topic string) ([]savedMember, error) {
	if !d.isReady() {
		return nil, nil
	}
	db, ok := app.AuxConcurrentDB().(*dbx.DB)
	if !ok {
		return nil, errors.New("topics: members cannot be read inside a transaction of the auxiliary database")
	}
	ctx, cancel := context.WithTimeout(context.Background(), decisionTimeout)
	defer cancel()

	rows, err := db.DB().QueryContext(ctx, "SELECT collection, id, options, state, since FROM _topicsMembers WHERE topic = ? AND run <> ? ORDER BY since", topic, d.run)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // rows.Err says what there is to say

	var list []savedMember
	for rows.Next() {
		var (
			m     = savedMember{topic: topic}
			state string
			since int64
		)
		if err := rows.Scan(&m.key.collection, &m.key.id, &m.options, &state, &since); err != nil {
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
