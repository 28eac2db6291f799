package topics

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/search"
)

// decisionTimeout bounds one evaluation of a rule.
const decisionTimeout = 10 * time.Second

// asker is who a rule is asked for.
type asker struct {
	collection *core.Collection // of the auth record, nil for a guest
	id         string
	tokenKey   string

	// info is needed where a plan does not let in. It may have another answer
	// to who it is: a guest.
	info func() (*core.RequestInfo, error)

	// ctx ends the queries, unless nil
	ctx context.Context

	// verified, unless nil, is set when a plan has let in the account, which it
	// does only if that is there with its token key.
	verified *bool
}

func askerOf(info *core.RequestInfo) asker {
	who := asker{info: func() (*core.RequestInfo, error) { return info, nil }}
	if info.Auth != nil {
		who.collection, who.id, who.tokenKey = info.Auth.Collection(), info.Auth.Id, info.Auth.TokenKey()
	}
	return who
}

func (who asker) isSuperuser() bool {
	return who.collection != nil && who.collection.Name == core.CollectionNameSuperusers
}

// decide answers nil if who may do a with topic. A panic, such as one of the
// app's own functions, is a rule that cannot be evaluated.
func (p *Plugin) decide(app core.App, a action, topic string, who asker) (d *denial) {
	if err := recovered(func() { d = p.decideRule(app, a, topic, who) }); err != nil {
		return denyRuleError(err)
	}
	return d
}

func (p *Plugin) decideRule(app core.App, a action, topic string, who asker) *denial {
	if !validTopic(topic) {
		return denyMalformed()
	}
	if takenName(topic) {
		return denyTakenName()
	}

	d, err := p.rules.find(app, topic)
	if err != nil {
		return denyRuleError(err)
	}
	return p.decideBy(app, d, a, topic, who)
}

// decideBy is decide by a definition, or without one.
func (p *Plugin) decideBy(app core.App, d *definition, a action, topic string, who asker) *denial {
	who.ctx = p.life
	if d == nil {
		if a == actionSubscribe && p.config.AllowUnknown {
			return nil
		}
		return denyUnknown()
	}

	allowed, err := d.allows(app, a, topic, who)
	switch {
	case err != nil:
		return denyRuleError(fmt.Errorf("the rule to %s %q (%s): %w", a, d.pattern.raw, d.source, err))
	case !allowed:
		return denyRule(a)
	}
	return nil
}

// decideSafely is decideGrant, with a panic for a rule that cannot be evaluated.
func (p *Plugin) decideSafely(g *grant) (o outcome) {
	if err := recovered(func() { o = p.decideGrant(g) }); err != nil {
		return outcome{denial: denyRuleError(err), reason: reasonRuleError}
	}
	return o
}

// decideGrant decides whether a subscription, or its view of the members, may
// go on, and which member it is. First it registers the
// grant for what the decision reads, so that no write falls between.
func (p *Plugin) decideGrant(g *grant) outcome {
	app, auth, topic, a := g.app, g.key.auth, g.key.topic, g.key.action

	d, err := p.rules.find(app, topic)
	if err != nil {
		return outcome{denial: denyRuleError(err), reason: reasonRuleError}
	}
	if !g.names.covers(d.optionsRead(app, a, topic)) {
		return outcome{denial: denyRuleError(errRuleChanged), reason: reasonRuleError, moves: true}
	}
	tracks := d != nil && d.tracks
	nothingToSee := outcome{denial: denyNoPresence(), reason: reasonNoPresence}
	if d != nil && d.open(a) && (!tracks || auth.id == "" || a == actionPresence) {
		p.grants.watch(g, reads{})
		if a == actionPresence && !tracks {
			return nothingToSee
		}
		o := outcome{until: forever}
		if tracks && a == actionSubscribe {
			o.identity = &identity{guest: true}
		}
		return o
	}

	var r reads
	if auth.id != "" {
		r.tables = append(r.tables, tableRead{auth.collection, []match{{core.FieldNameId, auth.id}}})
	}
	if d != nil {
		ruleReads := d.reads(app, a, topic, auth)
		r.clock, r.everything = ruleReads.clock, ruleReads.everything
		r.tables = append(r.tables, ruleReads.without(r).tables...)
	}
	p.grants.watch(g, r)

	who, err := auth.asker(app, realtimeInfoOf(g.options))
	if err != nil {
		return outcome{denial: denyRuleError(err), reason: reasonRuleError}
	}

	who.verified = new(bool)
	denial := p.decideBy(app, d, a, topic, who)
	if denial != nil {
		info, err := who.info()
		signedOut := auth.id != "" && err == nil && info.Auth == nil
		return outcome{denial: denial, reason: reasonOf(a, denial, signedOut)}
	}

	if a == actionPresence && !tracks {
		return nothingToSee
	}

	o := outcome{until: forever}
	switch {
	case !tracks || a != actionSubscribe:
	case *who.verified && len(d.shows) == 0:
		o.identity = &identity{collection: who.collection.Id, name: who.collection.Name, id: who.id}
	default:
		info, err := who.info()
		if err != nil {
			return outcome{denial: denyRuleError(err), reason: reasonRuleError}
		}
		if o.identity, err = identityOf(app, d, info.Auth); err != nil {
			p.logPresenceError(app, topic, err)
		}
	}
	if who.id != "" {
		o.until = auth.expires
	}
	if r.clock {
		// from now, not from before a slow query: it has to count for something
		if end := time.Now().Add(clockTTL).UnixNano(); end < o.until {
			o.until, o.clock = end, true
		}
	}
	return o
}

var errRuleChanged = errors.New("the rule has changed during the decision")

// open reports whether everyone may, without a look at any data.
func (d *definition) open(a action) bool {
	r := d.rule(a)
	return r.broken == nil && r.text != nil && *r.text == "" && d.collection == ""
}

// boundRule is a definition's rule for one topic.
type boundRule struct {
	text     *string
	base     *core.Collection
	recordID string
	values   params
}

// bind finds out what a rule is evaluated on.
func (d *definition) bind(app core.App, a action, topic string) (boundRule, error) {
	r := d.rule(a)
	if r.broken != nil {
		return boundRule{}, r.broken
	}

	b := boundRule{text: r.text, base: unboundBase, values: d.pattern.params(topic)}
	if d.collection == "" {
		return b, nil
	}

	collection, err := app.FindCachedCollectionByNameOrId(d.collection)
	if err != nil {
		return b, fmt.Errorf("the collection %q of the topic rule cannot be found: %w", d.collection, err)
	}
	b.base = collection
	b.recordID, _ = b.values.get(idParam)
	if a == actionSubscribe && r.text != nil && *r.text == viewRule {
		b.text = collection.ViewRule
	}
	return b, nil
}

// plan returns the rule's plan for that auth collection, if it has one.
func (d *definition) plan(app core.App, b boundRule, auth *core.Collection) *plan {
	if b.text == nil || *b.text == "" {
		return nil
	}
	return d.plans.of(app, d, *b.text, b.base, auth)
}

// reads says what a decision with the definition's rule depends on.
func (d *definition) reads(app core.App, a action, topic string, auth credentials) reads {
	b, err := d.bind(app, a, topic)
	if err != nil {
		return reads{} // it denies until rules or collections change
	}

	var authCollection *core.Collection
	if auth.id != "" {
		authCollection, _ = app.FindCachedCollectionByNameOrId(auth.collection)
	}
	if p := d.plan(app, b, authCollection); p != nil {
		return p.readsFor(questionOf(auth.id, auth.tokenKey, topic, b.values))
	}

	text := ""
	if b.text != nil {
		text = *b.text
	}
	return readsOf(app, d.plans.schemaOf, text, b.base, b.recordID, b.values, topic, authCollection, auth.id)
}

// allows evaluates one of the definition's rules.
func (d *definition) allows(app core.App, a action, topic string, who asker) (bool, error) {
	b, err := d.bind(app, a, topic)
	if err != nil {
		return false, err
	}

	text := ""
	if !who.isSuperuser() {
		if b.text == nil {
			return false, nil
		}
		text = *b.text
	}
	if text == "" && b.recordID == "" {
		return true, nil
	}

	ctx := who.ctx
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, decisionTimeout)
	defer cancel()

	if text != "" {
		if p := d.plan(app, b, who.collection); p != nil {
			// an error is not the last word, as a plan ends with its ruleset,
			// nor is a denial of an account that may have become a guest
			allowed, err := p.allows(ctx, questionOf(who.id, who.tokenKey, topic, b.values))
			if err == nil && (allowed || who.collection == nil) {
				if who.verified != nil {
					*who.verified = allowed && who.collection != nil
				}
				return allowed, nil
			}
		}
	}

	info, err := who.info()
	if err != nil {
		return false, err
	}
	if text != "" {
		var auth *core.Collection
		if info.Auth != nil {
			auth = info.Auth.Collection()
		}
		if err := d.plans.check(app, d, text, b.base, auth); err != nil {
			return false, err
		}
	}
	return exists(ctx, app, b.base, b.recordID, ruleCondition(app, b.base, text, info, topic, b.values))
}

// unboundBase stands in for the base collection of rules that are not
// evaluated on a record. It exists only within a query, has one row and no
// fields, so that a bare field name in such a rule is an error.
var unboundBase = func() *core.Collection {
	c := core.NewBaseCollection("topics__unbound", "topics__unbound")
	c.Fields = core.NewFieldsList()
	return c
}()

// exists runs a query for the base's record with that id, narrowed by where.
func exists(ctx context.Context, app core.App, base *core.Collection, recordID string, where func(*dbx.SelectQuery) error) (bool, error) {
	statement, bound, err := existsQuery(app, base, recordID, where)
	if err != nil {
		return false, err
	}

	var found int
	err = app.ConcurrentDB().NewQuery(statement).Bind(bound).WithContext(ctx).Row(&found)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil && found > 0, err
}

func existsQuery(app core.App, base *core.Collection, recordID string, where func(*dbx.SelectQuery) error) (string, dbx.Params, error) {
	q := app.ConcurrentDB().Select("(1)").From(base.Name).Limit(1)
	with := ""
	if base == unboundBase {
		with = "WITH [[" + base.Name + "]] AS (SELECT '' AS [[id]]) "
	} else {
		q.AndWhere(dbx.HashExp{base.Name + ".id": recordID})
	}

	if err := where(q); err != nil {
		return "", nil, err
	}

	built := q.Build()
	return with + built.SQL(), built.Params(), nil
}

// ruleCondition narrows a query by a rule, with core's own resolver.
func ruleCondition(app core.App, base *core.Collection, text string, info *core.RequestInfo, topic string, values params) func(*dbx.SelectQuery) error {
	return func(q *dbx.SelectQuery) error {
		if text == "" {
			return nil
		}
		resolver := newTopicResolver(app, base, info, topic, values)
		expr, err := search.FilterData(text).BuildExpr(resolver)
		if err != nil {
			return err
		}
		if err := resolver.UpdateQuery(q); err != nil {
			return err
		}
		q.AndWhere(expr)
		return nil
	}
}

// topicResolver resolves what PocketBase's rules know, and @topic. The values
// of @topic are bound as parameters of the query, so their text is never part
// of a filter.
type topicResolver struct {
	*core.RecordFieldResolver

	// body resolves @request.body.*, which a bound collection must not
	// reinterpret: with a relation field "data", @request.body.data.x would
	// follow ids that the publisher chose
	body *core.RecordFieldResolver

	topic  string
	params params
	bound  int
}

var _ search.FieldResolver = (*topicResolver)(nil)

const (
	topicIdentifier = "@topic"
	bodyPrefix      = "@request.body."
)

func newTopicResolver(app core.App, base *core.Collection, info *core.RequestInfo, topic string, values params) *topicResolver {
	r := &topicResolver{
		RecordFieldResolver: core.NewRecordFieldResolver(app, base, info, true),
		topic:               topic,
		params:              values,
	}
	r.body = r.RecordFieldResolver
	if base != unboundBase {
		r.body = core.NewRecordFieldResolver(app, unboundBase, info, true)
	}
	return r
}

// Resolve implements [search.FieldResolver].
func (r *topicResolver) Resolve(name string) (*search.ResolverResult, error) {
	if strings.HasPrefix(name, bodyPrefix) {
		return r.body.Resolve(name)
	}

	rest, isTopic := strings.CutPrefix(name, topicIdentifier)
	switch {
	case !isTopic:
		return r.RecordFieldResolver.Resolve(name)
	case rest == "":
		return r.bind(r.topic), nil
	}

	param, dotted := strings.CutPrefix(rest, ".")
	value, known := r.params.get(param)
	if !dotted || !known {
		return nil, fmt.Errorf("%s is not a parameter of the pattern", name)
	}
	return r.bind(value), nil
}

// bind makes an operand of value, which is never empty: an empty operand
// would compare as equal to a missing record. Each operand has a placeholder
// of its own because the ~ operator rewrites the values it gets.
func (r *topicResolver) bind(value string) *search.ResolverResult {
	r.bound++
	placeholder := "topicsValue" + strconv.Itoa(r.bound)

	return &search.ResolverResult{
		Identifier: "{:" + placeholder + "}",
		Params:     dbx.Params{placeholder: value},
	}
}
