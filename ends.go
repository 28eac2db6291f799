package topics

import (
	"slices"
	"strings"

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

// ties returns what names the topics of a definition.
func (d *definition) ties() (ties []tie) {
	add := func(t tie) {
		if !slices.Contains(ties, t) {
			ties = append(ties, t)
		}
	}
	if d.collection != "" {
		add(tie{d.collection, idParam})
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
			if e.Op != fexpr.SignEq && e.Op != fexpr.SignAnyEq {
				return
			}
			for _, sides := range [][2]fexpr.Token{{e.Left, e.Right}, {e.Right, e.Left}} {
				param, isTopic := topicParam(sides[0])
				if !isTopic || sides[1].Type != fexpr.TokenIdentifier {
					continue
				}
				path := strings.Split(sides[1].Literal, ".")
				switch {
				case sides[1].Literal == "@request.auth.id":
					for _, c := range accounts {
						add(tie{c, param})
					}
				case len(path) == 3 && path[0] == "@collection" && path[2] == core.FieldNameId:
					name, _, _ := strings.Cut(path[1], ":")
					add(tie{name, param})
				}
			}
		})
	}
	return ties
}

// accountCollections are those that a rule wants the account to be of, or all.
func accountCollections(groups []fexpr.ExprGroup) (collections []string) {
	walkRule(groups, func(e fexpr.Expr) {
		for _, sides := range [][2]fexpr.Token{{e.Left, e.Right}, {e.Right, e.Left}} {
			isCollection := sides[0].Literal == "@request.auth.collectionName" || sides[0].Literal == "@request.auth.collectionId"
			if isCollection && sides[1].Type == fexpr.TokenText && (e.Op == fexpr.SignEq || e.Op == fexpr.SignAnyEq) {
				collections = append(collections, sides[1].Literal)
			}
		}
	})
	if len(collections) == 0 {
		return []string{anyAuth}
	}
	return collections
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
		if err := e.Next(); err != nil {
			return err
		}
		afterCommit(e.App, func() { p.endTopics(gone, nil) })
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
	afterCommit(e.App, func() { p.endTopics(c, ids) })
	return nil
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
