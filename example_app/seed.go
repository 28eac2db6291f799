package main

import (
	"database/sql"
	"errors"
	"fmt"

	"github.com/pbtopics/topics/migrations"
	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/types"
)

const (
	usersCollection = "users" // PocketBase creates it on its own first start
	roomsCollection = "rooms"

	lobbyID      = "lobby0000000001"
	demoPassword = "topics-demo"

	roomPattern = "room/{id}"

	// memberRule is evaluated on a record of rooms: whoever is a member. Without
	// its first part a room without members would let guests in.
	memberRule = `@request.auth.id != "" && members.id ?= @request.auth.id`

	// looseMemberRule is what data directories were seeded with before.
	looseMemberRule = "members.id ?= @request.auth.id"
)

func init() {
	// A migration runs once for a data directory: that is the "first start".
	// Its name sorts after the one that creates the topic rules collection.
	core.AppMigrations.Register(seed, nil, "1763900000_example_app_seed.go")
	// What came to the example later, also for older data directories. The rules of
	// a room are corrected before anything is added to them.
	core.AppMigrations.Register(seedStrictRules, nil, "1763900001_example_app_strict_rules.go")
	core.AppMigrations.Register(seedPresence, nil, "1764000000_example_app_presence.go")
}

// seed creates the demo data. What is already there is left as it is.
func seed(app core.App) error {
	memberIDs := make([]string, 0, 2)

	for _, name := range []string{"ann", "bob", "eve"} {
		account, err := seedAccount(app, name)
		if err != nil {
			return fmt.Errorf("seed account %s: %w", name, err)
		}
		if name != "eve" { // eve is there to be refused
			memberIDs = append(memberIDs, account.Id)
		}
	}

	if err := seedRooms(app, memberIDs); err != nil {
		return fmt.Errorf("seed rooms: %w", err)
	}

	if err := seedTopics(app); err != nil {
		return fmt.Errorf("seed topics: %w", err)
	}

	return nil
}

func seedAccount(app core.App, name string) (*core.Record, error) {
	email := name + "@example.com"

	account, err := app.FindAuthRecordByEmail(usersCollection, email)
	if !errors.Is(err, sql.ErrNoRows) {
		return account, err
	}

	users, err := app.FindCollectionByNameOrId(usersCollection)
	if err != nil {
		return nil, err
	}

	account = core.NewRecord(users)
	account.SetEmail(email)
	account.SetEmailVisibility(false) // members of a room see names, not e-mails
	account.SetPassword(demoPassword)
	account.SetVerified(true)
	account.Set("name", name)

	return account, app.Save(account)
}

func seedRooms(app core.App, memberIDs []string) error {
	_, err := app.FindCollectionByNameOrId(roomsCollection)
	if !errors.Is(err, sql.ErrNoRows) {
		return err
	}

	users, err := app.FindCollectionByNameOrId(usersCollection)
	if err != nil {
		return err
	}

	rooms := core.NewBaseCollection(roomsCollection)
	rooms.Fields.Add(
		&core.TextField{Name: "name", Required: true, Presentable: true, Max: 100},
		// required: a room without members would be nobody's
		&core.RelationField{Name: "members", Required: true, CollectionId: users.Id, MaxSelect: 1000},
		&core.AutodateField{Name: "created", OnCreate: true},
		&core.AutodateField{Name: "updated", OnCreate: true, OnUpdate: true},
	)
	// Members may read; changes go through the routes in rooms.go or the dashboard.
	rooms.ListRule = types.Pointer(memberRule)
	rooms.ViewRule = rooms.ListRule
	if err := app.Save(rooms); err != nil {
		return err
	}

	lobby := core.NewRecord(rooms)
	lobby.Id = lobbyID
	lobby.Set("name", "Lobby")
	lobby.Set("members", memberIDs)
	if err := app.Save(lobby); err != nil {
		return err
	}

	// People who share a room see each other's name.
	users.ViewRule = types.Pointer(`id = @request.auth.id || (@request.auth.id != "" && rooms_via_members.members.id ?= @request.auth.id)`)

	return app.Save(users)
}

// seedTopics saves the rules through the app, so that they are validated like
// rules that are written in the dashboard.
func seedTopics(app core.App) error {
	collection, err := app.FindCollectionByNameOrId(migrations.CollectionID)
	if err != nil {
		return err
	}

	// A rule that is not set is null: superusers only.
	for _, rule := range []map[string]any{
		{
			"pattern":       "announcements",
			"subscribeRule": "",
			"publishRule":   nil,
			"description":   "Everybody may listen; only the server and superusers speak.",
		},
		{
			"pattern":       roomPattern,
			"collection":    roomsCollection,
			"subscribeRule": memberRule,
			"publishRule":   memberRule,
			"history":       100,
			"description":   "The members of the room, who find the last messages when they come.",
		},
		{
			"pattern":       "user/{id}",
			"subscribeRule": `@request.auth.id != "" && @request.auth.collectionName = "users" && @topic.id = @request.auth.id`,
			"description":   "What concerns one user only.",
		},
	} {
		existing, err := app.CountRecords(collection, dbx.HashExp{"pattern": rule["pattern"]})
		if err != nil {
			return err
		}
		if existing > 0 {
			continue
		}

		record := core.NewRecord(collection)
		record.Load(rule)
		if err := app.Save(record); err != nil {
			return fmt.Errorf("%s: %w", rule["pattern"], err)
		}
	}

	return nil
}

// seedStrictRules corrects the rules of a room that were seeded with the trap of
// docs/rules.md. What somebody has changed is left as it is.
func seedStrictRules(app core.App) error {
	rule, err := app.FindFirstRecordByData(migrations.CollectionID, "pattern", roomPattern)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}

	changed := false
	for _, field := range []string{"subscribeRule", "publishRule", "presenceRule"} {
		var text *string
		if err := rule.UnmarshalJSONField(field, &text); err != nil {
			return err
		}
		if text != nil && *text == looseMemberRule {
			rule.Set(field, memberRule)
			changed = true
		}
	}
	if !changed {
		return nil
	}

	return app.Save(rule)
}

// seedPresence lets the members of a room see who of them is there. A rule that
// somebody has changed is left as it is.
func seedPresence(app core.App) error {
	rule, err := app.FindFirstRecordByData(migrations.CollectionID, "pattern", roomPattern)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}

	var subscribe, presence *string
	if err := errors.Join(
		rule.UnmarshalJSONField("subscribeRule", &subscribe),
		rule.UnmarshalJSONField("presenceRule", &presence),
	); err != nil {
		return err
	}
	if rule.GetString("collection") != roomsCollection || subscribe == nil || *subscribe != memberRule || presence != nil {
		return nil
	}

	rule.Set("presence", true)
	rule.Set("presenceRule", memberRule)
	rule.Set("presenceFields", "name")

	return app.Save(rule)
}
