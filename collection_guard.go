package topics

import (
	"errors"

	validation "github.com/pocketbase/ozzo-validation/v4"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/pbtopics/topics/migrations"
)

// notEmpty says why the topic rules collection is not deleted.
var notEmpty = validation.NewError(codeRulesNotEmpty,
	"The topic rules collection has records, and without it every topic is denied. Delete its records first, or import with the existing collections kept.")

// guardCollection refuses to delete the topic rules collection with rules in
// it: an import that deletes missing collections would do so by the way. What
// the same transaction has deleted before does not count.
func guardCollection(e *core.CollectionEvent) error {
	if !e.App.HasTable(e.Collection.Name) {
		return e.Next() // nothing is lost with it
	}
	count, err := e.App.CountRecords(e.Collection)
	if err != nil {
		return err
	}
	if count > 0 {
		return validation.Errors{"collection": notEmpty}
	}
	return e.Next()
}

func explainGuardedDelete(e *core.CollectionRequestEvent) error {
	return explainGuard(e.Next())
}

func explainGuardedImport(e *core.CollectionsImportRequestEvent) error {
	return explainGuard(e.Next())
}

// explainGuard gives a refusal of [guardCollection] a message that says why: the
// dashboard shows no more than that.
func explainGuard(err error) error {
	var answer *router.ApiError
	if !errors.As(err, &answer) {
		return err
	}
	cause, _ := answer.RawData().(error)
	var faults validation.Errors
	if !errors.As(cause, &faults) {
		return err
	}
	var fault validation.Error
	if !errors.As(faults["collection"], &fault) || fault.Code() != codeRulesNotEmpty {
		return err
	}
	return router.NewApiError(answer.Status, fault.Error(), faults)
}

// restoreCollection brings a missing topic rules collection back. An app starts
// without it too: every topic is denied then.
func restoreCollection(app core.App) {
	restored, err := migrations.Restore(app)
	switch {
	case err != nil:
		app.Logger().Error("Failed to bring the topic rules collection back", "error", err.Error())
	case restored:
		app.Logger().Warn("The topic rules collection was missing. It is back, but empty: the rules are in your backups only.")
	}
}
