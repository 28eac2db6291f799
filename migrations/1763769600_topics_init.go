// Package migrations creates the `_topics` collection.
//
// Importing the package adds its migrations to [core.AppMigrations]; they are
// then applied like an app's own ones (on serve, with `migrate up` and by
// tests.NewTestApp).
package migrations

import (
	"database/sql"
	"errors"

	"github.com/pocketbase/pocketbase/core"
)

const (
	// CollectionID is the fixed id of the topic rules collection. Code looks
	// the collection up by it, so that a rename does not matter.
	CollectionID = "_pb_topics_"

	// CollectionName is the name the collection is created with.
	CollectionName = "_topics"
)

func init() {
	// explicit, because migrations of all packages share one namespace of file names
	core.AppMigrations.Register(up, nil, "1763769600_topics_init.go")
}

// up creates the collection. It never fails because of what is already there:
// an error here would keep the whole app from starting, while a missing
// collection only denies every topic.
func up(app core.App) error {
	for _, taken := range []string{CollectionID, CollectionName} {
		_, err := app.FindCollectionByNameOrId(taken)
		if err == nil {
			if taken == CollectionName {
				app.Logger().Error(
					"The name of the topic rules collection is taken by another collection, so every topic is denied. Rename that collection and restart the app.",
					"collection", CollectionName,
				)
			}
			return nil
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
	}

	return app.Save(newCollection())
}

// Restore creates the collection if it is missing, and reports whether it did:
// the migrations are recorded as done, so they do not run again by themselves.
// Where another collection has its name it only logs that, as the migration does.
func Restore(app core.App) (restored bool, err error) {
	exists := func(app core.App) (bool, error) {
		_, err := app.FindCollectionByNameOrId(CollectionID)
		if errors.Is(err, sql.ErrNoRows) {
			return false, nil
		}
		return err == nil, err
	}

	if ok, err := exists(app); err != nil || ok {
		return false, err
	}
	err = app.RunInTransaction(func(txApp core.App) error {
		for _, step := range []func(core.App) error{up, addPresenceFields} {
			if err := step(txApp); err != nil {
				return err
			}
		}
		restored, err = exists(txApp)
		return err
	})
	return restored && err == nil, err
}

func newCollection() *core.Collection {
	c := core.NewBaseCollection(CollectionName, CollectionID)

	zero := 0.0

	c.Fields.Add(
		&core.TextField{
			Id: "topics_pattern", Name: "pattern", System: true, Required: true, Presentable: true, Max: 255,
			Help: "announcements, room/{id}, files/{path...}",
		},
		&core.JSONField{
			Id: "topics_subscribe", Name: "subscribeRule", System: true, MaxSize: 10_000,
			Help: "Who may subscribe: null = superusers only, \"\" = everyone, else a filter. @view = whoever can view the record (with collection).",
		},
		&core.JSONField{
			Id: "topics_publish", Name: "publishRule", System: true, MaxSize: 10_000,
			Help: "Who may publish through the API: null = superusers only, \"\" = everyone, else a filter. @request.body.data is the payload.",
		},
		&core.JSONField{
			Id: "topics_presencerule", Name: "presenceRule", System: true, MaxSize: 10_000,
			Help: "Who may see the members: null = superusers only, \"\" = everyone, else a filter.",
		},
		&core.TextField{
			Id: "topics_collection", Name: "collection", System: true, Max: 255,
			Help: "Optional. {id} of the pattern is a record of this collection and the rules are evaluated on it.",
		},
		&core.NumberField{
			Id: "topics_history", Name: "history", System: true, OnlyInt: true, Min: &zero,
			Help: "Messages kept per topic (0 = none).",
		},
		&core.NumberField{
			Id: "topics_historyttl", Name: "historyTTL", System: true, OnlyInt: true, Min: &zero,
			Help: "Seconds a message is kept (0 = no limit beyond the count).",
		},
		&core.BoolField{
			Id: "topics_presence", Name: "presence", System: true,
			Help: "Track the members. Stored, but not used by this version.",
		},
		&core.TextField{
			Id: "topics_feed", Name: "feed", System: true, Max: 255,
			Help: "Collection whose record changes are sent to the topics. Stored, but not used by this version.",
		},
		&core.TextField{
			Id: "topics_feedrule", Name: "feedRule", System: true, Max: 10_000,
			Help: "Only records that match this filter are sent. Stored, but not used by this version.",
		},
		&core.TextField{
			Id: "topics_description", Name: "description", System: true, Max: 2_000,
		},
	)

	c.AddIndex("idx_topics_pattern", true, "pattern", "")

	return c
}
