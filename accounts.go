package topics

import (
	"strings"

	"github.com/ganigeorgiev/fexpr"
	"github.com/pocketbase/pocketbase/core"
)

// An account is its collection and its id: two auth collections may have a
// record of the same id, and where sign-ups may choose theirs, somebody will.

// comparesIDAlone reports whether a rule compares @request.auth.id with
// something and does not say of which collection the account has to be.
func comparesIDAlone(text string) bool {
	groups, err := fexpr.Parse(text)
	if err != nil || accountCollections(groups)[0] != anyAuth {
		return false
	}
	compares := false
	walkRule(groups, func(e fexpr.Expr) {
		for _, sides := range [][2]fexpr.Token{{e.Left, e.Right}, {e.Right, e.Left}} {
			literal, _, _ := strings.Cut(sides[0].Literal, ":")
			isID := sides[0].Type == fexpr.TokenIdentifier && literal == "@request.auth."+core.FieldNameId
			isNothing := sides[1].Type == fexpr.TokenText && sides[1].Literal == ""
			compares = compares || isID && !isNothing
		}
	})
	return compares
}

// warnOfAccounts logs a saved rule that takes accounts of different collections
// for the same.
func warnOfAccounts(app core.App, record *core.Record) {
	var suspects []string
	for _, field := range ruleFieldNames {
		if r := ruleOf(record, field); r.text != nil && comparesIDAlone(*r.text) {
			suspects = append(suspects, field)
		}
	}
	if len(suspects) == 0 {
		return
	}
	collections, err := app.FindAllCollections(core.CollectionTypeAuth)
	if err != nil {
		return // it is a warning only
	}
	names := make([]string, 0, len(collections))
	for _, c := range collections {
		if c.Name != core.CollectionNameSuperusers {
			names = append(names, c.Name)
		}
	}
	if len(names) < 2 {
		return
	}
	for _, field := range suspects {
		app.Logger().Warn(
			`A topic rule compares @request.auth.id alone, but accounts of different collections may have the same id. Add: @request.auth.collectionName = "…" &&`,
			"record", record.Id,
			"pattern", record.GetString("pattern"),
			"field", field,
			"authCollections", names,
		)
	}
}

// ruleFieldNames are those of ruleFields, in the order of the dashboard.
var ruleFieldNames = []string{"subscribeRule", "publishRule", "presenceRule"}
