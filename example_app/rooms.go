package main

import (
	"context"
	"net/http"
	"slices"

	"github.com/pbtopics/topics"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
)

// bindRooms adds what a member may do to a room.
func bindRooms(app core.App) {
	app.OnServe().BindFunc(func(se *core.ServeEvent) error {
		group := se.Router.Group("/api/rooms/{id}")
		group.Bind(apis.RequireAuth(usersCollection))
		group.POST("/invite", inviteToRoom)
		group.POST("/remove", removeFromRoom)
		group.POST("/leave", leaveRoom)
		se.Router.POST("/api/cut", cutConnection)

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

	return changeOwnRoom(e, func(txApp core.App, room *core.Record) error {
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
}

// removerKey is the key of a context with the name of who removes a member.
type removerKey struct{}

// removeFromRoom ends the membership of another account. Nobody has to tell it:
// the topic's rule no longer holds, so its subscription ends with the commit,
// with a notice.
func removeFromRoom(e *core.RequestEvent) error {
	var body struct {
		User string `json:"user"`
	}
	if err := e.BindBody(&body); err != nil {
		return e.BadRequestError("", err)
	}
	if body.User == e.Auth.Id {
		return e.BadRequestError("To remove yourself, leave the room.", nil)
	}

	return changeOwnRoom(e, func(txApp core.App, room *core.Record) error {
		if !slices.Contains(room.GetStringSlice("members"), body.User) {
			return e.NotFoundError("There is no such member.", nil)
		}

		room.Set("members-", body.User)

		remover := context.WithValue(e.Request.Context(), removerKey{}, e.Auth.GetString("name"))

		return txApp.SaveWithContext(remover, room)
	})
}

func leaveRoom(e *core.RequestEvent) error {
	return changeOwnRoom(e, func(txApp core.App, room *core.Record) error {
		if len(room.GetStringSlice("members")) == 1 {
			return e.BadRequestError("The last member cannot leave.", nil)
		}

		room.Set("members-", e.Auth.Id)

		return txApp.Save(room)
	})
}

// cutConnection ends the realtime connection of the page that asks, as a proxy
// or a bad network would.
func cutConnection(e *core.RequestEvent) error {
	var body struct {
		ClientID string `json:"clientId"`
	}
	if err := e.BindBody(&body); err != nil {
		return e.BadRequestError("", err)
	}
	// who knows the id, which is random, is its owner
	e.App.SubscriptionsBroker().Unregister(body.ClientID)

	return e.NoContent(http.StatusNoContent)
}

// changeOwnRoom runs change in a transaction with the room of the request's
// path, if the caller is a member of it.
func changeOwnRoom(e *core.RequestEvent, change func(txApp core.App, room *core.Record) error) error {
	err := e.App.RunInTransaction(func(txApp core.App) error {
		room, err := txApp.FindRecordById(roomsCollection, e.Request.PathValue("id"))
		if err != nil || !slices.Contains(room.GetStringSlice("members"), e.Auth.Id) {
			return e.NotFoundError("", err)
		}

		return change(txApp, room)
	})
	if err != nil {
		return err
	}

	return e.NoContent(http.StatusNoContent)
}
