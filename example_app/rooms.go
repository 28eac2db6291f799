package main

import (
	"net/http"
	"slices"

	"github.com/pbtopics/topics"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
)

// bindRooms adds the two things a member may do to a room.
func bindRooms(app core.App) {
	app.OnServe().BindFunc(func(se *core.ServeEvent) error {
		group := se.Router.Group("/api/rooms/{id}")
		group.Bind(apis.RequireAuth(usersCollection))
		group.POST("/invite", inviteToRoom)
		group.POST("/leave", leaveRoom)

		return se.Next()
	})
}

// inviteToRoom makes the account with the given e-mail a member and tells it so.
func inviteToRoom(e *core.RequestEvent) error {
	var body struct {
		Email string `json:"email"`
	}
	if err := e.BindBody(&body); err != nil {
		return e.BadRequestError("", err)
	}

	err := e.App.RunInTransaction(func(txApp core.App) error {
		room, err := findOwnRoom(txApp, e)
		if err != nil {
			return err
		}

		invited, err := txApp.FindAuthRecordByEmail(usersCollection, body.Email)
		if err != nil {
			return e.NotFoundError("There is no account with this e-mail.", err)
		}
		if slices.Contains(room.GetStringSlice("members"), invited.Id) {
			return nil // already a member
		}

		// Given the transaction's app, Notify waits for the commit: whoever is
		// told can already enter, and if the save below fails nobody is told.
		err = topics.Notify(txApp, "user/"+invited.Id, map[string]any{
			"text": e.Auth.GetString("name") + " invited you to " + room.GetString("name"),
			"room": room.Id,
		})
		if err != nil {
			return err
		}

		room.Set("members+", invited.Id)

		return txApp.Save(room)
	})
	if err != nil {
		return err
	}

	return e.NoContent(http.StatusNoContent)
}

func leaveRoom(e *core.RequestEvent) error {
	err := e.App.RunInTransaction(func(txApp core.App) error {
		room, err := findOwnRoom(txApp, e)
		if err != nil {
			return err
		}
		if len(room.GetStringSlice("members")) == 1 {
			return e.BadRequestError("The last member cannot leave.", nil)
		}

		room.Set("members-", e.Auth.Id)

		return txApp.Save(room)
	})
	if err != nil {
		return err
	}

	return e.NoContent(http.StatusNoContent)
}

// findOwnRoom returns the room of the request's path, if the caller is a member.
func findOwnRoom(app core.App, e *core.RequestEvent) (*core.Record, error) {
	room, err := app.FindRecordById(roomsCollection, e.Request.PathValue("id"))
	if err != nil || !slices.Contains(room.GetStringSlice("members"), e.Auth.Id) {
		return nil, e.NotFoundError("", err)
	}

	return room, nil
}
