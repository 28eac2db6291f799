package topics

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/ganigeorgiev/fexpr"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/types"

	"github.com/pbtopics/topics/migrations"
)

// Topic is a topic rule kept in code, with the same meaning as a record of the
// `_topics` collection. Rules are PocketBase's: nil is for superusers only, ""
// is for everyone, anything else is a filter expression.
//
//	topics.Topic{Pattern: "news", SubscribeRule: types.Pointer("")}
type Topic struct {
	// Pattern names the topics: literal segments, {param} segments and at the
	// end possibly {rest...}. Required.
	Pattern string

	// SubscribeRule says who may subscribe. With Collection it may be "@view":
	// whoever can view the record.
	SubscribeRule *string

	// PublishRule says who may publish through the API.
	PublishRule *string

	// PresenceRule says who may see the members.
	PresenceRule *string

	// History is how many messages are kept for those who come later or come
	// back, within [Config.HistoryMessages]. Default 0: none.
	History int

	// HistoryTTL is how long they are kept. Default 0: until newer ones take
	// their place.
	HistoryTTL time.Duration

	// Presence makes each subscriber a member of its topic: see [Presence].
	Presence bool

	// PresenceFields are the fields of members' auth records that are shown,
	// besides their id and collection. PocketBase's own limits hold: hidden
	// fields are never shown, and an e-mail only with emailVisibility.
	PresenceFields []string

	// Collection is the name or id of a collection whose record the pattern's
	// {id} names: rules are then evaluated on that record, and a missing
	// record denies. Optional.
	Collection string
}

// viewRule as a subscribe rule stands for the collection's own view rule.
const viewRule = "@view"

// definition is a topic rule ready to be used, from a record or from code.
type definition struct {
	pattern    pattern
	subscribe  rule
	publish    rule
	presence   rule
	collection string
	history    int
	historyTTL time.Duration
	tracks     bool     // its members
	shows      []string // of their auth records

	// plans of the ruleset that the definition is part of, else nil
	plans *plans

	tied []tie // what names its topics

	// source names the definition in the log
	source string

	// broken denies everything, and says why
	broken error
}

// rule is the value of a rule field. A nil text is for superusers only.
type rule struct {
	text   *string
	broken error
}

func (d *definition) rule(a action) rule {
	switch {
	case d.broken != nil:
		return rule{broken: d.broken}
	case a == actionSubscribe:
		return d.subscribe
	case a == actionPublish:
		return d.publish
	case a == actionPresence:
		return d.presence
	default:
		return rule{broken: fmt.Errorf("there is no rule for the action %q", a)}
	}
}

// ruleset is everything that was defined at one moment.
type ruleset struct {
	generation uint64
	tree       patternTree[definition]
	plans      *plans // nil in a transaction

	named []*definition // those whose topics are named after records

	// missing: there is no collection to read, so what is not in code is not
	// known
	missing bool
}

// rules finds the definition of a topic. It reads the collection when it is
// needed the first time and again after each change.
type rules struct {
	code []*definition

	// generation counts the changes; current is valid while it has the same
	generation atomic.Uint64
	current    atomic.Pointer[ruleset]

	served atomic.Bool // the app's migrations are done
}

// serve is called when the app begins to serve.
func (r *rules) serve() {
	r.served.Store(true)
	r.changed() // what was read before may not have been complete
}

// newRules returns an error that names the first invalid field of the first
// invalid topic, in the order of the fields of [Topic]. Whether the collections
// in its rules exist is only known later.
func newRules(code []Topic) (*rules, error) {
	r := new(rules)
	shapes := map[string]int{}

	for i, t := range code {
		field := fmt.Sprintf("topics: Config.Topics[%d]", i)

		d := &definition{
			subscribe:  rule{text: t.SubscribeRule},
			publish:    rule{text: t.PublishRule},
			presence:   rule{text: t.PresenceRule},
			collection: t.Collection,
			history:    t.History,
			historyTTL: t.HistoryTTL,
			tracks:     t.Presence,
			shows:      t.PresenceFields,
			source:     fmt.Sprintf("Config.Topics[%d]", i),
		}

		if t.History < 0 {
			return nil, fmt.Errorf("%s.History: must not be negative, got %d", field, t.History)
		}
		if t.HistoryTTL < 0 {
			return nil, fmt.Errorf("%s.HistoryTTL: must not be negative, got %v", field, t.HistoryTTL)
		}

		var err error
		if d.pattern, err = parsePattern(t.Pattern); err != nil {
			return nil, fmt.Errorf("%s.Pattern: %w", field, err)
		}
		if other, ok := shapes[d.pattern.shape()]; ok {
			return nil, fmt.Errorf("%s.Pattern: matches the same topics as Config.Topics[%d]", field, other)
		}
		shapes[d.pattern.shape()] = i

		if d.collection != "" && !d.pattern.hasRecordID() {
			return nil, fmt.Errorf("%s.Collection: the pattern needs an {id} segment to name a record", field)
		}
		for _, rule := range []struct {
			name    string
			text    *string
			mayView bool
		}{
			{"SubscribeRule", t.SubscribeRule, true},
			{"PublishRule", t.PublishRule, false},
			{"PresenceRule", t.PresenceRule, false},
		} {
			if err := d.checkSyntax(rule.text, rule.mayView); err != nil {
				return nil, fmt.Errorf("%s.%s: %w", field, rule.name, err)
			}
		}

		r.code = append(r.code, d)
	}

	return r, nil
}

// checkSyntax finds the faults of a rule that need no database.
func (d *definition) checkSyntax(text *string, mayView bool) error {
	switch {
	case text == nil || *text == "":
		return nil
	case *text == viewRule && mayView:
		if d.collection == "" {
			return errors.New(viewRule + " needs a collection")
		}
		return nil
	}

	_, err := fexpr.Parse(*text)
	return err
}

// idParam is the parameter that names the record of a bound collection.
const idParam = "id"

func (p pattern) hasRecordID() bool {
	for _, s := range p.segments {
		if s.kind == segmentParam && s.text == idParam {
			return true
		}
	}
	return false
}

// close ends what the rules hold in the database.
func (r *rules) close() {
	if set := r.current.Swap(nil); set != nil {
		set.plans.close()
	}
}

// changed makes the next find read the collection again.
func (r *rules) changed() { r.generation.Add(1) }

// find returns the definition of the most specific pattern that matches the
// topic, which must be valid, or nil if there is none.
func (r *rules) find(app core.App, topic string) (*definition, error) {
	set, err := r.load(app)
	if err != nil {
		return nil, err
	}
	return set.tree.find(topic), nil
}

func (r *rules) load(app core.App) (*ruleset, error) {
	// what a transaction sees is not true for others
	inTransaction := app.IsTransactional()

	generation := r.generation.Load()
	if set := r.current.Load(); set != nil && set.generation == generation && !inTransaction {
		return set, nil
	}

	// concurrent loads may do the same work; a load that a change has
	// overtaken carries the old generation and is not used again
	var shared *plans
	if !inTransaction {
		shared = newPlans()
	}
	set, err := r.read(app, generation, shared)
	if err != nil || inTransaction {
		return set, err
	}
	if old := r.current.Swap(set); old != nil {
		old.plans.close()
	}

	return set, nil
}

func (r *rules) read(app core.App, generation uint64, shared *plans) (*ruleset, error) {
	set := &ruleset{generation: generation, plans: shared}

	records, err := r.findRecords(app)
	set.missing = errors.Is(err, errRulesMissing)
	if err != nil && !set.missing {
		return nil, fmt.Errorf("failed to read the topic rules: %w", err)
	}

	for _, record := range records {
		d, err := definitionOf(record)
		if err == nil {
			d.plans = shared
		}
		if err != nil {
			app.Logger().Error(
				"Ignored a topic rule whose pattern is invalid: nothing matches it. Edit or delete the record.",
				"record", record.Id,
				"pattern", record.GetString("pattern"),
				"error", err.Error(),
			)
			continue
		}
		if reservedTopic(app, d.pattern.segments[0].text) && d.pattern.segments[0].kind == segmentLiteral {
			app.Logger().Warn(
				"A topic rule is out of reach because its first segment is the name or id of a collection. Change the pattern or rename the collection.",
				"record", record.Id,
				"pattern", d.pattern.raw,
			)
		}
		if d.tied = d.ties(app); len(d.tied) > 0 {
			set.named = append(set.named, d)
		}
		if other := set.tree.add(d.pattern, d); other != nil {
			// a save refuses this, so it was written past the app
			d.broken = fmt.Errorf("the patterns of %s and %s match the same topics", other.source, d.source)
			app.Logger().Error("Two topic rules match the same topics, which denies them: delete one.", "error", d.broken.Error())
		}
	}

	for _, d := range r.code {
		own := *d
		own.plans = shared
		set.tree.add(own.pattern, &own)
		if own.tied = own.ties(app); len(own.tied) > 0 {
			set.named = append(set.named, &own)
		}
	}

	return set, nil
}

var errRulesMissing = errors.New("the topic rules collection is missing")

// findRecords returns [errRulesMissing] when the collection is gone, which denies
// every topic that is not in code.
func (r *rules) findRecords(app core.App) ([]*core.Record, error) {
	collection, err := app.FindCachedCollectionByNameOrId(migrations.CollectionID)
	if errors.Is(err, sql.ErrNoRows) && !r.served.Load() {
		return nil, errRulesMissing // the migrations of a first start come to it yet
	}
	if errors.Is(err, sql.ErrNoRows) {
		app.Logger().Error(
			"The topic rules collection is missing, so every topic is denied that Config.Topics does not have. docs/operating.md says how to bring it back.",
			"collectionId", migrations.CollectionID,
		)
		return nil, errRulesMissing
	}
	if err != nil {
		return nil, err
	}
	return app.FindAllRecords(collection)
}

func definitionOf(record *core.Record) (*definition, error) {
	p, err := parsePattern(record.GetString("pattern"))
	if err != nil {
		return nil, err
	}

	return &definition{
		pattern:    p,
		subscribe:  ruleOf(record, "subscribeRule"),
		publish:    ruleOf(record, "publishRule"),
		presence:   ruleOf(record, "presenceRule"),
		collection: record.GetString("collection"),
		history:    record.GetInt("history"),
		historyTTL: time.Duration(record.GetInt("historyTTL")) * time.Second,
		tracks:     record.GetBool("presence"),
		shows:      fieldNames(record.GetString("presenceFields")),
		source:     "record " + record.Id,
	}, nil
}

// fieldNames reads a list like that of PocketBase's query parameter fields.
func fieldNames(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' || unicode.IsSpace(r) })
}

// ruleOf reads a rule field: JSON null or a JSON string.
func ruleOf(record *core.Record, field string) rule {
	raw, _ := record.Get(field).(types.JSONRaw)
	if len(raw) == 0 {
		return rule{}
	}

	var text *string
	if err := json.Unmarshal(raw, &text); err != nil {
		return rule{broken: fmt.Errorf("%s must be null or a text, not %s", field, clip(string(raw)))}
	}
	return rule{text: text}
}
