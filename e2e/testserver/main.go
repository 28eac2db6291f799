// Command testserver is only for the tests in this folder; it is not an
// example. Anyone who reaches it can send anything to any topic: the harness
// starts it on 127.0.0.1, with an empty data directory.
package main

import (
	"encoding/json"
	"log"
	"net/http"

	"github.com/pbtopics/topics"
	"github.com/pocketbase/pocketbase"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/types"
)

const signedIn = `@request.auth.id != ""`

func main() {
	app := pocketbase.New()

	topics.MustRegister(app, topics.Config{
		Topics: []topics.Topic{
			{Pattern: "example", SubscribeRule: types.Pointer(""), PublishRule: types.Pointer("")},
			{Pattern: "open/{name}", SubscribeRule: types.Pointer(""), PublishRule: types.Pointer("")},
			{Pattern: "members/{name}", SubscribeRule: types.Pointer(signedIn), PublishRule: types.Pointer(signedIn)},
			{Pattern: "staff"}, // null rules: superusers only
		},
	})

	app.OnServe().BindFunc(func(se *core.ServeEvent) error {
		if err := seed(se.App); err != nil {
			return err
		}

		se.Router.POST("/test/notify", notify)

		return se.Next()
	})

	if err := app.Start(); err != nil {
		log.Fatal(err)
	}
}

// notify passes the body's data, byte for byte as it came, to topics.Notify.
func notify(e *core.RequestEvent) error {
	var body struct {
		Topic string          `json:"topic"`
		Data  json.RawMessage `json:"data"`
	}
	if err := json.NewDecoder(e.Request.Body).Decode(&body); err != nil {
		return e.BadRequestError("", err)
	}

	if err := topics.Notify(e.App, body.Topic, body.Data); err != nil {
		return e.JSON(http.StatusInternalServerError, map[string]string{"error": err.Error()})
	}

	return e.NoContent(http.StatusNoContent)
}

// seed creates the account tester@example.com and the collection notes.
func seed(app core.App) error {
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
