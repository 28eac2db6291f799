// Command testserver is only for the tests in this folder; it is not an
// example. Anyone who reaches it can send anything to any topic and run any
// SQL: the harness starts it on 127.0.0.1, with an empty data directory.
package main

import (
	"encoding/json"
	"errors"
	"log"
	"net/http"
	"os"
	"path/filepath"

	"github.com/pbtopics/topics"
	"github.com/pocketbase/pocketbase"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/types"
)

const signedIn = `@request.auth.id != ""`

func main() {
	if len(os.Args) == 4 && os.Args[1] == "sql" {
		if err := execute(os.Args[2], os.Args[3]); err != nil {
			log.Fatal(err)
		}
		return
	}

	app := pocketbase.New()

	config := topics.Config{
		HistoryMessages: 5000,
		Topics: []topics.Topic{
			{Pattern: "example", SubscribeRule: types.Pointer(""), PublishRule: types.Pointer("")},
			{Pattern: "open/{name}", SubscribeRule: types.Pointer(""), PublishRule: types.Pointer("")},
			{Pattern: "log/{name}", SubscribeRule: types.Pointer(""), PublishRule: types.Pointer(""), History: 5000},
			{Pattern: "short/{name}", SubscribeRule: types.Pointer(""), PublishRule: types.Pointer(""), History: 5},
			{Pattern: "members/{name}", SubscribeRule: types.Pointer(signedIn), PublishRule: types.Pointer(signedIn)},
			{
				Pattern: "hall/{name}", SubscribeRule: types.Pointer(""), PublishRule: types.Pointer(""), History: 10,
				Presence: true, PresenceRule: types.Pointer(`@request.auth.name != ""`), PresenceFields: []string{"name"},
			},
			{Pattern: "staff"}, // null rules: superusers only
		},
	}
	flags := app.RootCmd.PersistentFlags()
	flags.DurationVar(&config.SweepInterval, "sweep", 0, "topics.Config.SweepInterval, -1ns for never")
	flags.DurationVar(&config.PresenceGrace, "grace", 0, "topics.Config.PresenceGrace, -1ns for none")
	flags.DurationVar(&config.WriteTimeout, "write-timeout", 0, "topics.Config.WriteTimeout")
	if err := app.RootCmd.ParseFlags(os.Args[1:]); err != nil {
		log.Fatal(err)
	}

	topics.MustRegister(app, config)

	app.OnRecordUpdateRequest("users").BindFunc(func(e *core.RecordRequestEvent) error {
		if err := e.Next(); err != nil {
			return err
		}
		return topics.Notify(e.App, "open/records", map[string]any{"record": e.Record, "list": []any{e.Record}})
	})

	app.OnServe().BindFunc(func(se *core.ServeEvent) error {
		if err := seed(se.App); err != nil {
			return err
		}

		se.Router.POST("/test/notify", notify)
		se.Router.POST("/test/transaction", transaction)
		se.Router.POST("/test/sql", rawSQL)

		return se.Next()
	})

	if err := app.Start(); err != nil {
		log.Fatal(err)
	}
}

// execute runs a statement on the database of a data directory, as a program
// that is not PocketBase does.
func execute(dir, statement string) error {
	db, err := core.DefaultDBConnect(filepath.Join(dir, "data.db"))
	if err != nil {
		return err
	}

	_, err = db.NewQuery(statement).Execute()

	return errors.Join(err, db.Close())
}

// message is passed byte for byte as it came to topics.Notify.
type message struct {
	Topic string          `json:"topic"`
	Data  json.RawMessage `json:"data"`
}

func notify(e *core.RequestEvent) error {
	var body message
	if err := json.NewDecoder(e.Request.Body).Decode(&body); err != nil {
		return e.BadRequestError("", err)
	}

	return answer(e, topics.Notify(e.App, body.Topic, body.Data))
}

// transaction deletes a record in a Go transaction, says something outside of
// it while it is open, and rolls it back if asked.
func transaction(e *core.RequestEvent) error {
	var body struct {
		Collection string  `json:"collection"`
		ID         string  `json:"id"`
		Meanwhile  message `json:"meanwhile"`
		Rollback   bool    `json:"rollback"`
	}
	if err := json.NewDecoder(e.Request.Body).Decode(&body); err != nil {
		return e.BadRequestError("", err)
	}

	rollback := errors.New("asked for")
	err := e.App.RunInTransaction(func(txApp core.App) error {
		record, err := txApp.FindRecordById(body.Collection, body.ID)
		if err != nil {
			return err
		}
		if err := txApp.Delete(record); err != nil {
			return err
		}
		if err := topics.Notify(e.App, body.Meanwhile.Topic, body.Meanwhile.Data); err != nil {
			return err
		}
		if body.Rollback {
			return rollback
		}
		return nil
	})
	if errors.Is(err, rollback) {
		err = nil
	}

	return answer(e, err)
}

// rawSQL runs a statement past the app's hooks.
func rawSQL(e *core.RequestEvent) error {
	var body struct {
		Statement string `json:"statement"`
	}
	if err := json.NewDecoder(e.Request.Body).Decode(&body); err != nil {
		return e.BadRequestError("", err)
	}

	_, err := e.App.DB().NewQuery(body.Statement).Execute()

	return answer(e, err)
}

func answer(e *core.RequestEvent, err error) error {
	if err != nil {
		return e.JSON(http.StatusInternalServerError, map[string]string{"error": err.Error()})
	}

	return e.NoContent(http.StatusNoContent)
}

// seed creates the account tester@example.com and the collection notes.
func seed(app core.App) error {
	if _, err := app.FindAuthRecordByEmail("users", "tester@example.com"); err == nil {
		return nil // after a restart
	}
	users, err := app.FindCollectionByNameOrId("users")
	if err != nil {
		return err
	}

	tester := core.NewRecord(users)
	tester.SetEmail("tester@example.com")
	tester.SetPassword("topics-test")
	tester.SetVerified(true)
	if err := app.Save(tester); err != nil {
		return err
	}

	notes := core.NewBaseCollection("notes")
	notes.Fields.Add(&core.TextField{Name: "text"})
	notes.ListRule = types.Pointer("")
	notes.ViewRule = types.Pointer("")
	notes.CreateRule = types.Pointer("")

	return app.Save(notes)
}
