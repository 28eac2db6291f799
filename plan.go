package topics

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/ganigeorgiev/fexpr"
	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/security"
	"github.com/pocketbase/pocketbase/tools/subscriptions"
)

// maxPlans bounds the plans, each of which is a prepared statement.
const maxPlans = 500

// plan is a rule as a prepared statement, for everybody of one auth collection
// (or all guests) and all topics of a pattern.
//
// Core's resolver makes the statement, once, for stand-ins: random texts for
// the auth record's id, for the topic and for each parameter. Wherever a
// stand-in is among the statement's values, a decision binds what it stands
// for. That is the statement core would make for the real values, because its
// text does not depend on them as long as they are texts that are not empty;
// rules for which it could are left without a plan (see plannable).
type plan struct {
	statement *sql.Stmt
	values    []planValue
	reads     reads // of the stand-ins
	standIns  map[string]int
	asking    chan struct{}
	inUse     gate
}

// planValue is bound to the statement: what a stand-in stands for or, if that
// is negative, a constant.
type planValue struct {
	standIn  int
	constant any
}

// The first stand-ins; the parameters follow in the pattern's order.
const (
	standInAuth = iota
	standInTokenKey
	standInTopic
	standInParams
)

// question is what a plan's stand-ins stand for.
type question []string

func questionOf(authID, tokenKey, topic string, values params) question {
	q := make(question, 0, standInParams+len(values))
	q = append(q, authID, tokenKey, topic)
	for _, p := range values {
		q = append(q, p.value)
	}
	return q
}

type planKey struct {
	d    *definition
	text string
	auth string // collection id
}

// plans are those of one ruleset, which is replaced when rules or collections
// change.
type plans struct {
	mu     sync.Mutex
	closed bool
	byRule map[planKey]*plan // nil: the rule has none

	// checked are the rules that were evaluated without a plan, and the clash of
	// each, or nil
	checked map[planKey]error

	// asking has room for as many statements as may run at once. SQLite's work
	// is the CPU's; more of them only make database/sql open connections
	// beyond those that it keeps.
	asking chan struct{}

	schema atomic.Pointer[databaseSchema] // nil until it is needed
}

// schemaOf reads the schema once, or in a transaction (without plans) each time.
func (ps *plans) schemaOf(app core.App) (*databaseSchema, error) {
	if ps == nil {
		return readSchema(app)
	}
	if s := ps.schema.Load(); s != nil {
		return s, nil
	}
	s, err := readSchema(app)
	if err == nil {
		ps.schema.Store(s)
	}
	return s, err
}

func newPlans() *plans {
	return &plans{
		byRule:  map[planKey]*plan{},
		checked: map[planKey]error{},
		asking:  make(chan struct{}, max(8, 2*runtime.GOMAXPROCS(0))),
	}
}

// close ends all plans, each of them when nobody uses it any longer. Who comes
// later gets an error.
func (ps *plans) close() {
	ps.mu.Lock()
	ended := ps.byRule
	ps.closed, ps.byRule = true, nil
	ps.mu.Unlock()

	for _, p := range ended {
		if p != nil {
			p.close()
		}
	}
}

// of returns the plan of a rule, or nil if it has none.
func (ps *plans) of(app core.App, d *definition, text string, base, auth *core.Collection) *plan {
	db, ok := app.ConcurrentDB().(*dbx.DB)
	if ps == nil || !ok {
		return nil // a transaction sees what others do not
	}

	key := planKey{d: d, text: text}
	if auth != nil {
		key.auth = auth.Id
	}
	if p, known := ps.known(key); known {
		return p
	}

	// the decision itself will say what is wrong with a rule
	p, err := newPlan(app, db, d, text, base, auth)
	if err != nil {
		p = nil
	} else {
		p.asking = ps.asking
	}

	kept, added := ps.add(key, p)
	if !added && p != nil {
		p.close()
	}
	return kept
}

// add keeps the plan, unless there is another one or no room.
func (ps *plans) add(key planKey, p *plan) (kept *plan, added bool) {
	ps.mu.Lock()
	defer ps.mu.Unlock()

	if other, ok := ps.byRule[key]; ok || ps.closed || len(ps.byRule) >= maxPlans {
		return other, false
	}
	ps.byRule[key] = p
	return p, true
}

// check returns why the rule must not be evaluated for accounts of that
// collection, or for guests: see [checkAliases].
func (ps *plans) check(app core.App, d *definition, text string, base, auth *core.Collection) error {
	if ps == nil {
		return checkAliases(app, text, base, auth, d.pattern.names()) // in a transaction
	}

	key := planKey{d: d, text: text}
	if auth != nil {
		key.auth = auth.Id
	}
	ps.mu.Lock()
	err, known := ps.checked[key]
	ps.mu.Unlock()
	if known {
		return err
	}

	err = checkAliases(app, text, base, auth, d.pattern.names())
	var clash *aliasClash
	if err == nil || errors.As(err, &clash) { // others may pass
		ps.mu.Lock()
		ps.checked[key] = err
		ps.mu.Unlock()
	}
	return err
}

// known also knows that there is no room for the plan.
func (ps *plans) known(key planKey) (*plan, bool) {
	ps.mu.Lock()
	defer ps.mu.Unlock()

	p, ok := ps.byRule[key]
	return p, ok || ps.closed || len(ps.byRule) >= maxPlans
}

// close ends the statement, or lets the last user end it.
func (p *plan) close() {
	if p.inUse.close() {
		p.end()
	}
}

func (p *plan) end() { _ = p.statement.Close() } // it is not used again

var errPlanEnded = errors.New("the plan has ended with its rules")

var errNoPlan = errors.New("the statement may depend on the values")

func newPlan(app core.App, db *dbx.DB, d *definition, text string, base, auth *core.Collection) (*plan, error) {
	groups, err := fexpr.Parse(text)
	if err != nil {
		return nil, err
	}
	if !plannable(groups) {
		return nil, errNoPlan
	}
	if err := checkAliases(app, text, base, auth, d.pattern.names()); err != nil {
		return nil, err
	}

	p := &plan{standIns: map[string]int{}}
	standIn := func(i int) string {
		name := security.RandomString(32)
		p.standIns[name] = i
		return name
	}
	var (
		values params
		id     = standIn(standInAuth)
		token  = standIn(standInTokenKey)
		topic  = standIn(standInTopic)
	)
	recordID := ""
	for i, name := range d.pattern.names() {
		values = append(values, param{name: name, value: standIn(standInParams + i)})
	}
	if d.collection != "" {
		recordID, _ = values.get(idParam)
	}

	info := realtimeInfo(subscriptions.SubscriptionOptions{}, nil)
	authID := ""
	if auth != nil {
		authID = id
		info.Auth = core.NewRecord(auth)
		info.Auth.Id = id
	}

	rule := ruleCondition(app, base, text, info, topic, values)
	statement, bound, err := existsQuery(app, base, recordID, func(q *dbx.SelectQuery) error {
		if auth != nil {
			q.AndWhere(dbx.NewExp(
				fmt.Sprintf("EXISTS (SELECT 1 FROM {{%s}} WHERE [[id]] = {:topicsID} AND [[tokenKey]] = {:topicsKey})", auth.Name),
				dbx.Params{"topicsID": id, "topicsKey": token},
			))
		}
		return rule(q)
	})
	if err != nil {
		return nil, err
	}
	statement, err = p.bind(db, statement, bound)
	if err != nil {
		return nil, err
	}
	p.reads = readsOf(app, d.plans.schemaOf, text, base, recordID, values, topic, auth, authID)
	if p.reads.clock {
		return nil, errNoPlan
	}
	p.statement, err = db.DB().Prepare(statement)
	return p, err
}

// plannable reports whether core's resolver makes the same statement for all
// values: there are no macros (some are the time), no functions, and nothing
// of the request other than the auth record. Of that, only the id is a value;
// other fields are columns of a join, apart from the few named here.
func plannable(groups []fexpr.ExprGroup) bool {
	for _, g := range groups {
		switch item := g.Item.(type) {
		case fexpr.Expr:
			if !plannableToken(item.Left) || !plannableToken(item.Right) {
				return false
			}
		case fexpr.ExprGroup:
			if !plannable([]fexpr.ExprGroup{item}) {
				return false
			}
		case []fexpr.ExprGroup:
			if !plannable(item) {
				return false
			}
		default:
			return false
		}
	}
	return true
}

func plannableToken(t fexpr.Token) bool {
	switch t.Type {
	case fexpr.TokenText, fexpr.TokenNumber:
		return true
	case fexpr.TokenIdentifier:
	default:
		return false
	}

	first, _, _ := strings.Cut(t.Literal, ".")
	switch {
	case !strings.HasPrefix(first, "@"), first == topicIdentifier, first == "@collection":
		return true
	case t.Literal == "@request.auth."+core.FieldNameEmail,
		t.Literal == "@request.auth."+core.FieldNameEmailVisibility,
		t.Literal == "@request.auth."+core.FieldNameVerified:
		return false // core takes them from the record that is at hand
	default:
		return strings.HasPrefix(t.Literal, "@request.auth.")
	}
}

var (
	boundName  = regexp.MustCompile(`\{:\w+\}`)
	quotedName = regexp.MustCompile(`\{\{[\w\-. ]+\}\}|\[\[[\w\-. ]+\]\]`)
)

// bind puts a ? where the statement names a value, as dbx does, and keeps what
// to bind there.
func (p *plan) bind(db *dbx.DB, statement string, bound dbx.Params) (string, error) {
	var err error
	statement = boundName.ReplaceAllStringFunc(statement, func(name string) string {
		value, ok := bound[name[2:len(name)-1]]
		if !ok {
			err = fmt.Errorf("%w: %s has none", errNoPlan, name)
		}
		v := planValue{standIn: -1, constant: value}
		switch text := value.(type) {
		case string:
			if i, ok := p.standIns[text]; ok {
				v = planValue{standIn: i}
			} else if p.mentioned(text) {
				err = errNoPlan // core has made something else of it
			}
		case float64, float32, int, int64, bool, nil:
		default:
			err = fmt.Errorf("%w: a %T", errNoPlan, value)
		}
		p.values = append(p.values, v)
		return "?"
	})
	if err == nil && p.mentioned(statement) {
		err = errNoPlan
	}
	return quotedName.ReplaceAllStringFunc(statement, func(name string) string {
		if name[0] == '{' {
			return db.QuoteTableName(name[2 : len(name)-2])
		}
		return db.QuoteColumnName(name[2 : len(name)-2])
	}), err
}

func (p *plan) mentioned(text string) bool {
	for name := range p.standIns {
		if strings.Contains(text, name) {
			return true
		}
	}
	return false
}

// allows reports whether the rule lets somebody in who has an account, with
// this token key: it is false too if the account is not there, or has another.
func (p *plan) allows(ctx context.Context, q question) (bool, error) {
	if !p.inUse.enter() {
		return false, errPlanEnded
	}
	defer func() {
		if p.inUse.leave() {
			p.end()
		}
	}()

	select {
	case p.asking <- struct{}{}:
		defer func() { <-p.asking }()
	case <-ctx.Done():
		return false, ctx.Err()
	}

	args := make([]any, len(p.values))
	for i, v := range p.values {
		if v.standIn < 0 {
			args[i] = v.constant
		} else {
			args[i] = q[v.standIn]
		}
	}

	var found int
	err := p.statement.QueryRowContext(ctx, args...).Scan(&found)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil && found > 0, err
}

// readsFor is what the plan's rule reads for a question.
func (p *plan) readsFor(q question) reads {
	r := p.reads
	r.tables = make([]tableRead, 0, len(p.reads.tables))
	for _, t := range p.reads.tables {
		t.matches = slices.Clone(t.matches)
		for i, m := range t.matches {
			if at, ok := p.standIns[m.value]; ok {
				t.matches[i].value = q[at]
			}
		}
		// two stand-ins may stand for the same
		if !slices.ContainsFunc(r.tables, t.equal) {
			r.tables = append(r.tables, t)
		}
	}
	return r
}
