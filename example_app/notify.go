package main

import (
	"slices"
	"strings"
	"time"

	"github.com/pbtopics/topics"
	"github.com/pocketbase/pocketbase/core"
)

// bindNotify shows Notify from a record hook and from a cron job. rooms.go
// shows it in a transaction.
func bindNotify(app core.App) {
	app.OnRecordAfterUpdateSuccess(roomsCollection).BindFunc(func(e *core.RecordEvent) error {
		remover, _ := e.Context.Value(removerKey{}).(string)
		notifyRoomChange(e.App, e.Record, remover)

		return e.Next()
	})

	app.Cron().MustAdd("announceTime", "* * * * *", func() {
		announceTime(app)
	})
}

// notifyRoomChange tells a room what was changed about it, no matter whether a
// route, the dashboard or other Go code did. remover is the name of the member
// who removed another one, if it was so.
func notifyRoomChange(app core.App, room *core.Record, remover string) {
	var changes []string

	if name := room.GetString("name"); name != room.Original().GetString("name") {
		changes = append(changes, "the room is now called "+name)
	}

	before := room.Original().GetStringSlice("members")
	after := room.GetStringSlice("members")
	if names := namesOf(app, without(after, before)); names != "" {
		changes = append(changes, names+" joined")
	}
	if names := namesOf(app, without(before, after)); names != "" {
		if remover != "" {
			changes = append(changes, remover+" removed "+names)
		} else {
			changes = append(changes, names+" left")
		}
	}

	if len(changes) == 0 {
		return
	}

	err := topics.Notify(app, "room/"+room.Id, map[string]any{"system": strings.Join(changes, ", ")})
	if err != nil {
		app.Logger().Error("The room was not told of its change", "room", room.Id, "error", err)
	}
}

func announceTime(app core.App) {
	now := time.Now().UTC()

	err := topics.Notify(app, "announcements", map[string]any{
		"text": "The server's clock says " + now.Format("15:04") + " UTC.",
		"time": now,
	})
	if err != nil {
		app.Logger().Error("The time was not announced", "error", err)
	}
}

// without returns the ids that are not in others.
func without(ids, others []string) []string {
	return slices.DeleteFunc(slices.Clone(ids), func(id string) bool {
		return slices.Contains(others, id)
	})
}

// namesOf returns the names of the users with the given ids.
func namesOf(app core.App, ids []string) string {
	if len(ids) == 0 {
		return ""
	}

	users, err := app.FindRecordsByIds(usersCollection, ids)
	if err != nil {
		app.Logger().Error("The names of users were not found", "error", err)
		return ""
	}

	names := make([]string, len(users))
	for i, user := range users {
		names[i] = user.GetString("name")
	}
	slices.Sort(names)

	return strings.Join(names, " and ")
}
