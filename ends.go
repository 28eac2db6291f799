package topics

import (
	"database/sql"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/ganigeorgiev/fexpr"
	"github.com/pocketbase/pocketbase/core"
)

// A topic may be named after a record: the one of its collection field, the
// account that a rule compares a parameter with, or a record whose id a rule
// compares with one. When that record goes, the topic is not the same any
// longer, though another record may get its id one day. So its history and its
// positions end with the record, and again when a record of that id is created:
// what was sent in between was not for it.

// tie names a parameter of a pattern after the records of a collection.
type tie struct {
	collection string // name or id; anyAuth for each auth collection
	param      string // empty for the topic as a whole
}

const anyAuth = "@auth"

// ties returns what names the topics of a definition: the collection field, and
// each path in a rule that is compared with the topic or a parameter, in whatever
// way, and that leads to the id of a record. It may return too many: then more
// ends than has to.
func (d *definition) ties(app core.App) []tie {
	f := tieFinder{app: app, plans: d.plans}
	if d.collection != "" {
		f.add(d.collection, idParam)
		if c, err := app.FindCachedCollectionByNameOrId(d.collection); err == nil {
			f.addRecordsOf(c, idParam)
		}
	}
	for _, r := range []rule{d.subscribe, d.publish, d.presence} {
		if r.text == nil {
			continue
		}
		groups, err := fexpr.Parse(*r.text)
		if err != nil {
			continue // it denies
		}
		accounts := accountCollections(groups)
		walkRule(groups, func(e fexpr.Expr) {
			for _, sides := range [][2]fexpr.Token{{e.Left, e.Right}, {e.Right, e.Left}} {
				if param, ok := topicParam(sides[0]); ok && sides[1].Type == fexpr.TokenIdentifier {
					f.follow(sides[1].Literal, accounts, param)
				}
			}
		})
	}
	return f.found
}

type tieFinder struct {
	app   core.App
	plans *plans
	found []tie
}

func (f *tieFinder) add(collection, param string) {
	if t := (tie{collection, param}); !slices.Contains(f.found, t) {
		f.found = append(f.found, t)
	}
}

// addRecordsOf ties a parameter to the records of a collection or, of a view, of
// all collections that it reads.
func (f *tieFinder) addRecordsOf(c *core.Collection, param string) {
	f.add(c.Id, param)
	if !c.IsView() {
		return
	}
	schema, err := f.plans.schemaOf(f.app)
	if err != nil {
		return // its rule denies as well
	}
	for _, table := range schema.readsOf(c.Name).tables {
		f.add(table, param)
	}
}

// follow ties a parameter to what a path of a rule leads to.
func (f *tieFinder) follow(literal string, accounts []string, param string) {
	path := strings.Split(literal, ".")
	for i, part := range path {
		path[i], _, _ = strings.Cut(part, ":")
	}
	switch {
	case len(path) > 2 && path[0] == "@request" && path[1] == "auth":
		if len(path) == 3 && path[2] == core.FieldNameId {
			for _, c := range accounts {
				f.add(c, param)
			}
			return
		}
		all, err := f.app.FindAllCollections(core.CollectionTypeAuth)
		if err != nil {
			return // its rule denies as well
		}
		for _, c := range all {
			f.walk(c, path[2:], param)
		}
	case len(path) > 2 && path[0] == "@collection":
		if path[2] == core.FieldNameId {
			f.add(path[1], param) // also before there is one
		}
		if c, err := f.app.FindCachedCollectionByNameOrId(path[1]); err == nil {
			f.walk(c, path[2:], param)
		}
	}
}

func (f *tieFinder) walk(c *core.Collection, path []string, param string) {
	for i, name := range path {
		last := i == len(path)-1
		if last && name == core.FieldNameId {
			f.addRecordsOf(c, param)
			return
		}
		id := ""
		if relation, ok := c.Fields.GetByName(name).(*core.RelationField); ok {
			id = relation.CollectionId
		} else if via := backRelation.FindStringSubmatch(name); via != nil {
			id = via[1]
		}
		next, err := f.app.FindCachedCollectionByNameOrId(id)
		if err != nil {
			return // a field of another kind names nothing
		}
		if c = next; last {
			f.addRecordsOf(c, param)
		}
	}
}

// accountCollections are those that a rule wants the account to be of, or all.
// Where there is an "or", it is all.
func accountCollections(groups []fexpr.ExprGroup) (collections []string) {
	if hasOr(groups) {
		return []string{anyAuth}
	}
	walkRule(groups, func(e fexpr.Expr) {
		for _, sides := range [][2]fexpr.Token{{e.Left, e.Right}, {e.Right, e.Left}} {
			isCollection := sides[0].Literal == "@request.auth.collectionName" || sides[0].Literal == "@request.auth.collectionId"
			if isCollection && sides[1].Type == fexpr.TokenText && e.Op == fexpr.SignEq {
				collections = append(collections, sides[1].Literal)
			}
		}
	})
	if len(collections) == 0 {
		return []string{anyAuth}
	}
	return collections
}

func hasOr(groups []fexpr.ExprGroup) bool {
	for i, g := range groups {
		if i > 0 && g.Join == fexpr.JoinOr {
			return true
		}
		switch item := g.Item.(type) {
		case fexpr.ExprGroup:
			if hasOr([]fexpr.ExprGroup{item}) {
				return true
			}
		case []fexpr.ExprGroup:
			if hasOr(item) {
				return true
			}
		}
	}
	return false
}

func topicParam(t fexpr.Token) (param string, ok bool) {
	if t.Type != fexpr.TokenIdentifier {
		return "", false
	}
	rest, ok := strings.CutPrefix(t.Literal, topicIdentifier)
	if !ok || rest != "" && rest[0] != '.' {
		return "", false
	}
	return strings.TrimPrefix(rest, "."), true
}

// names reports whether the tie is to a collection's records.
func (t tie) names(c *core.Collection) bool {
	return t.collection == c.Id || strings.EqualFold(t.collection, c.Name) || t.collection == anyAuth && c.IsAuth()
}

// onRecordEnd handles the writes that create or delete a record, or change its
// id, and those that delete a collection.
func (p *Plugin) onRecordEnd(e *core.ModelEvent) error {
	if gone, ok := e.Model.(*core.Collection); ok {
		if e.Type != core.ModelEventTypeDelete {
			return e.Next()
		}
		set, err := p.rules.load(p.outerApp()) // while they know what they mean
		if nextErr := e.Next(); nextErr != nil {
			return nextErr
		}
		afterCommit(e.App, func() { p.endTopicsOf(set, err, gone, nil) })
		return nil
	}

	c := collectionOf(e.App, e.Model)
	before := idOf(e.Model.LastSavedPK())
	if err := e.Next(); err != nil || c == nil {
		return err
	}
	ids := []string{idOf(e.Model.PK())}
	if before != "" && before != ids[0] {
		ids = append(ids, before)
	}
	p.endInOrder(e.App, c, ids)
	return nil
}

// endInOrder ends the topics of records when the write is committed: at once,
// and again in the order of the messages, after those of earlier transactions
// that are told of their end late.
func (p *Plugin) endInOrder(app core.App, c *core.Collection, ids []string) {
	tx := dataTransaction(app)
	if tx == nil {
		p.endTopics(c, ids)
		return
	}
	places := map[string]*place{}
	for _, topic := range p.topicsOf(c, ids) {
		places[topic] = p.commits.join(topic, tx)
	}
	tx.OnComplete(func(txErr error) error {
		if txErr == nil {
			p.endTopics(c, ids)
		}
		for topic, place := range places {
			if txErr == nil {
				place.arrive(func() { p.history.endTopic(topic) })
			} else {
				place.leave()
			}
		}
		return nil
	})
}

// topicsOf returns the topics that records name, as far as that needs no look at
// all topics there are.
func (p *Plugin) topicsOf(c *core.Collection, ids []string) (topics []string) {
	set, err := p.rules.load(p.outerApp())
	if err != nil {
		return nil
	}
	for _, d := range set.named {
		for _, t := range d.tied {
			for _, id := range ids {
				if !t.names(c) || !validTopic(id) {
					continue
				}
				topic, exact := id, true
				if t.param != "" {
					topic, _, _, exact = d.pattern.glob(t.param, id)
				}
				if exact && set.tree.find(topic) == d && !slices.Contains(topics, topic) {
					topics = append(topics, topic)
				}
			}
		}
	}
	return topics
}

// onRecordRenamed is onRecordEnd for updates, which almost never change an id.
func (p *Plugin) onRecordRenamed(e *core.ModelEvent) error {
	if e.Model.LastSavedPK() == e.Model.PK() {
		return e.Next()
	}
	return p.onRecordEnd(e)
}

func idOf(pk any) string {
	id, _ := pk.(string)
	return id
}

// afterCommit calls f when the write of app is committed. In a transaction that
// is in the order of the messages that were sent in it.
func afterCommit(app core.App, f func()) {
	tx := dataTransaction(app)
	if tx == nil {
		f()
		return
	}
	tx.OnComplete(func(txErr error) error {
		if txErr == nil {
			f()
		}
		return nil
	})
}

// endTopics ends what is kept of the topics that are named after records of a
// collection: after those with these ids or, without ids, after any.
func (p *Plugin) endTopics(c *core.Collection, ids []string) {
	set, err := p.rules.load(p.outerApp())
	p.endTopicsOf(set, err, c, ids)
}

func (p *Plugin) endTopicsOf(set *ruleset, err error, c *core.Collection, ids []string) {
	if err != nil {
		// then nobody gets in either; the records of the id that come later end it
		p.logHistoryError("", err)
		return
	}
	for _, d := range set.named {
		for _, t := range d.tied {
			if !t.names(c) {
				continue
			}
			if ids == nil {
				p.endAll(set, d)
			}
			for _, id := range ids {
				p.endNamed(set, d, t.param, id)
			}
		}
	}
}

// endNamed ends the topics of a definition with that value.
func (p *Plugin) endNamed(set *ruleset, d *definition, param, value string) {
	if !validTopic(value) {
		return
	}
	if param == "" {
		if set.tree.find(value) == d {
			p.history.endTopic(value)
			p.history.endMembers(d, value, strings.Count(value, "/")+1, false)
		}
		return
	}
	glob, segments, more, exact := d.pattern.glob(param, value)
	if !exact {
		p.history.endWhere(func(topic string) bool {
			if !strings.Contains(topic, value) {
				return false // what is true for almost all
			}
			got, ok := d.pattern.params(topic).get(param)
			return ok && got == value && set.tree.find(topic) == d
		})
	} else if set.tree.find(glob) == d {
		p.history.endTopic(glob)
	}
	p.history.endMembers(d, glob, segments, more)
}

// endAll ends all topics of a definition.
func (p *Plugin) endAll(set *ruleset, d *definition) {
	p.history.endWhere(func(topic string) bool { return set.tree.find(topic) == d })
	glob, segments, more, _ := d.pattern.glob("", "")
	p.history.endMembers(d, glob, segments, more)
}

// glob describes the topics whose parameter has a value, as SQLite's GLOB and
// the number of segments, of which there may be more. It is exact where no
// other parameter is open: then it is the topic itself.
func (p pattern) glob(param, value string) (glob string, segments int, more, exact bool) {
	exact = true
	parts := make([]string, 0, len(p.segments))
	for _, s := range p.segments {
		switch {
		case s.kind == segmentLiteral:
			parts = append(parts, s.text)
		case s.text == param:
			parts = append(parts, value)
		default:
			parts = append(parts, "*")
			more = more || s.kind == segmentRest
			exact = false
		}
	}
	glob = strings.Join(parts, "/")
	return glob, strings.Count(glob, "/") + 1, more, exact
}

// endTopic ends a topic's log and its positions.
func (h *history) endTopic(topic string) {
	shard := h.hub.shard(topic)
	shard.mu.Lock()
	if l := shard.logs[topic]; l != nil {
		h.drop(shard, l, gapDeleted)
	}
	shard.mu.Unlock()
	h.positions.forgetTopic(topic)
}

// endWhere ends the logs and positions of all topics that match.
func (h *history) endWhere(matches func(topic string) bool) {
	topics := map[string]struct{}{}
	h.eachLog(func(_ *hubShard, l *topicLog) {
		if matches(l.topic) {
			topics[l.topic] = struct{}{}
		}
	})
	for _, topic := range h.positions.topics() {
		if matches(topic) {
			topics[topic] = struct{}{}
		}
	}
	for topic := range topics {
		h.endTopic(topic)
	}
}

// endMembers ends members on the disk, whom a restart would look for. Those in
// memory go with their decisions.
func (h *history) endMembers(d *definition, glob string, segments int, more bool) {
	if h.disk != nil && d.tracks {
		h.disk.addState("", membersEnd{glob: glob, segments: segments, more: more})
	}
}

// endOrphans ends the topics whose record is not there. It is called after an
// unclean stop, which may have taken the end of a topic with it.
func (p *Plugin) endOrphans(app core.App) {
	set, err := p.rules.load(app)
	if err != nil {
		p.logHistoryError("", err)
		return
	}
	topics := map[string]time.Time{}
	p.history.eachLog(func(_ *hubShard, l *topicLog) { topics[l.topic] = l.newest })
	for topic, newest := range topics {
		if d := set.tree.find(topic); d != nil && p.isOrphan(app, d, topic, newest) {
			p.history.endTopic(topic)
		}
	}
}

// isOrphan reports whether a topic was named after a record that is not there.
func (p *Plugin) isOrphan(app core.App, d *definition, topic string, newest time.Time) bool {
	if d.collection == "" {
		return false // a record of another tie may be one of several collections
	}
	id, _ := d.pattern.params(topic).get(idParam)
	record, err := app.FindRecordById(d.collection, id)
	if err != nil {
		return errors.Is(err, sql.ErrNoRows)
	}
	for _, f := range record.Collection().Fields {
		// the log of a record that was created after all of it is another's
		if created, ok := f.(*core.AutodateField); ok && created.OnCreate && !created.OnUpdate {
			return record.GetDateTime(f.GetName()).Time().After(newest)
		}
	}
	return false
}
