package topics

import (
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/ganigeorgiev/fexpr"
	validation "github.com/pocketbase/ozzo-validation/v4"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/search"
)

// ruleFields are the names of the rule fields, with what each guards.
var ruleFields = map[string]action{
	"subscribeRule": actionSubscribe,
	"publishRule":   actionPublish,
	"presenceRule":  actionPresence,
}

// validateRecord checks a record of the topic rules collection as it is saved.
// The error is a [validation.Errors] with the faults by field.
func validateRecord(app core.App, record *core.Record) error {
	faults := validation.Errors{}

	p, err := parsePattern(record.GetString("pattern"))
	if errors.Is(err, errTakenName) {
		faults["pattern"] = validation.NewError("validation_reserved_pattern", "The pattern "+err.Error()+". Use another word, or more segments.")
		return faults
	}
	if err != nil {
		faults["pattern"] = validation.NewError("validation_invalid_pattern", "Invalid pattern: "+err.Error()+".")
		return faults // the rest depends on the pattern
	}
	if err := validatePattern(app, record, p); err != nil {
		faults["pattern"] = err
	}

	base, err := validateCollection(app, record.GetString("collection"), p)
	if err != nil {
		faults["collection"] = err
	} else {
		for field := range ruleFields {
			if err := validateRule(app, ruleOf(record, field), field, base, p); err != nil {
				faults[field] = err
			}
		}
	}

	for _, name := range fieldNames(record.GetString("presenceFields")) {
		if err := validateShown(app, name); err != nil {
			faults["presenceFields"] = err
		}
	}

	return faults.Filter()
}

// validateShown checks a field of auth records that members are to show.
func validateShown(app core.App, name string) error {
	collections, err := app.FindAllCollections(core.CollectionTypeAuth)
	if err != nil {
		return err
	}
	hidden := false
	for _, c := range collections {
		f := c.Fields.GetByName(name)
		if f != nil && !f.GetHidden() {
			return nil
		}
		hidden = hidden || f != nil
	}
	if hidden {
		return validation.NewError("validation_hidden_field", "The field "+name+" is hidden, so it is never shown.")
	}
	return validation.NewError("validation_unknown_field", "No auth collection has a field "+name+". Use names of fields, separated by commas.")
}

func validatePattern(app core.App, record *core.Record, p pattern) error {
	first := p.segments[0]
	if p.raw == topicConnect || p.raw == topicOAuth2 {
		return validation.NewError("validation_reserved_pattern", "The topic "+p.raw+" is PocketBase's own.")
	}
	if first.kind == segmentLiteral {
		// the lookup ignores case: a pattern that differs from a collection
		// only by it would be confusing
		if c, err := app.FindCollectionByNameOrId(first.text); err == nil {
			return validation.NewError(
				"validation_pattern_collection",
				"The first segment is the name or id of the collection "+c.Name+", whose topics are PocketBase's own. Use another word, for example "+otherWord(first.text)+".",
			)
		}
	}

	others, err := app.FindAllRecords(record.Collection())
	if err != nil {
		return err
	}
	for _, other := range others {
		if other.Id == record.Id {
			continue
		}
		if op, err := parsePattern(other.GetString("pattern")); err == nil && op.shape() == p.shape() {
			return validation.NewError("validation_duplicate_pattern", "The pattern "+op.raw+" of another record matches the same topics.")
		}
	}

	return nil
}

// otherWord is a singular for most collection names, or at least another word.
func otherWord(collection string) string {
	if singular, ok := strings.CutSuffix(collection, "s"); ok && singular != "" {
		return singular
	}
	return "on-" + collection
}

// validateCollection returns the collection that rules are evaluated on.
func validateCollection(app core.App, nameOrID string, p pattern) (*core.Collection, error) {
	if nameOrID == "" {
		return unboundBase, nil
	}

	collection, err := app.FindCollectionByNameOrId(nameOrID)
	if err != nil {
		return nil, validation.NewError("validation_missing_collection", "There is no collection with this name or id.")
	}
	if !p.hasRecordID() {
		return nil, validation.NewError("validation_missing_id_param", "The pattern needs an {id} segment to name a record of the collection.")
	}
	return collection, nil
}

func validateRule(app core.App, r rule, field string, base *core.Collection, p pattern) error {
	const code = "validation_invalid_rule"

	switch {
	case r.broken != nil:
		return validation.NewError(code, "Must be null (superusers only) or a text (empty = everyone, else a filter).")
	case r.text == nil || *r.text == "":
		return nil
	case *r.text == viewRule && ruleFields[field] == actionSubscribe:
		if base == unboundBase {
			return validation.NewError("validation_view_without_collection", viewRule+" needs the collection field, whose view rule it stands for.")
		}
		if base.ViewRule == nil || *base.ViewRule == "" {
			return nil
		}
		return validateAliases(app, *base.ViewRule, base, p)
	}

	// as core validates the rules of a collection: by building the expression
	resolver := newTopicResolver(app, base, &core.RequestInfo{}, "t", p.params(p.raw))
	if _, err := search.FilterData(*r.text).BuildExpr(resolver); err != nil {
		return validation.NewError(code, "Invalid rule. Raw error: "+err.Error())
	}
	return validateAliases(app, *r.text, base, p)
}

// validateAliases refuses a rule that PocketBase would evaluate on other tables
// than it names, whoever it is evaluated for.
func validateAliases(app core.App, text string, base *core.Collection, p pattern) error {
	accounts, err := app.FindAllCollections(core.CollectionTypeAuth)
	if err != nil {
		return err
	}
	for _, auth := range append(accounts, nil) {
		var clash *aliasClash
		if errors.As(checkAliases(app, text, base, auth, p.names()), &clash) {
			return validation.NewError("validation_ambiguous_rule", "Ambiguous rule: "+clash.Error()+". Rename a field or a collection.")
		}
	}
	return nil
}

// guestsPass reports whether a rule compares something of @request.auth with
// a field, or asks that it differs from something, but never asks whether there
// is an auth record. For a guest the auth's side is empty. Then the other side
// can be empty too: `members.id ?= @request.auth.id` lets everybody in where
// there are no members; and `@request.auth.role != "banned"` is simply true.
func guestsPass(text string) bool {
	groups, err := fexpr.Parse(text)
	if err != nil {
		return false
	}

	compares, asks := false, false
	walkRule(groups, func(e fexpr.Expr) {
		left, right := e.Left, e.Right
		if !isAuthField(left) {
			left, right = right, left
		}
		equals := e.Op == fexpr.SignEq || e.Op == fexpr.SignAnyEq
		differs := e.Op == fexpr.SignNeq || e.Op == fexpr.SignAnyNeq
		switch {
		case !isAuthField(left):
		case differs && right.Type == fexpr.TokenText && right.Literal == "":
			asks = true
		case differs, equals && isField(right):
			compares = true
		}
	})
	return compares && !asks
}

func isField(t fexpr.Token) bool {
	return t.Type == fexpr.TokenIdentifier &&
		!strings.HasPrefix(t.Literal, topicIdentifier) && // never empty
		!slices.Contains([]string{"true", "false", "null"}, strings.ToLower(t.Literal))
}

func isAuthField(t fexpr.Token) bool {
	return t.Type == fexpr.TokenIdentifier && strings.HasPrefix(t.Literal, "@request.auth.")
}

func walkRule(groups []fexpr.ExprGroup, visit func(fexpr.Expr)) {
	for _, g := range groups {
		switch item := g.Item.(type) {
		case fexpr.Expr:
			visit(item)
		case fexpr.ExprGroup:
			walkRule([]fexpr.ExprGroup{item}, visit)
		case []fexpr.ExprGroup:
			walkRule(item, visit)
		}
	}
}

// warnOfGuests logs a saved rule that guests may pass by accident.
func warnOfGuests(app core.App, record *core.Record) {
	for _, field := range slices.Sorted(maps.Keys(ruleFields)) {
		r := ruleOf(record, field)
		if r.text == nil || !guestsPass(*r.text) {
			continue
		}
		app.Logger().Warn(
			`A topic rule may let guests pass, for whom @request.auth is empty. If it should not, add: @request.auth.id != "" &&`,
			"record", record.Id,
			"pattern", record.GetString("pattern"),
			"field", field,
			"rule", *r.text,
		)
	}
}
