package main

import (
	"net/http"
	"time"

	"github.com/pbtopics/topics"
	"github.com/pbtopics/topics/internal/testserver"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
)

const (
	keptFew  = 40 // of the topics few/n
	keptMany = 5000
	maxLogs  = 6

	// much longer than it takes to come back
	grace = 5 * time.Second

	// More members than that are only counted: the guests in their grace see to
	// it that lobby/1 passes it now and then.
	shownMembers = 14
)

// serve runs the server.
func serve(dir, address string, overlap time.Duration) error {
	app := core.NewBaseApp(core.BaseAppConfig{DataDir: dir})
	rule := "@request.auth.id != '' && @collection.members.user ?= @request.auth.id && @collection.members.topic ?= @topic"
	sight := "@request.auth.id != '' && @collection.viewers.user ?= @request.auth.id && @collection.viewers.topic ?= @topic"
	everybody := ""
	fields := []string{"name"}
	err := topics.Register(app, topics.Config{
		QueueMessages:   64,
		WriteTimeout:    5 * time.Second,
		HistoryMessages: keptMany,
		HistoryBytes:    16 << 20,
		ResumeOverlap:   overlap,
		MaxTopics:       maxLogs,

		PresenceGrace:    grace,
		PresenceSnapshot: shownMembers,

		Topics: []topics.Topic{
			{Pattern: "many/1", SubscribeRule: &rule, PresenceRule: &everybody, History: keptMany}, // without presence
			{Pattern: "many/{n}", SubscribeRule: &rule, PresenceRule: &sight, Presence: true, PresenceFields: fields, History: keptMany},
			{Pattern: "few/{n}", SubscribeRule: &rule, PresenceRule: &sight, Presence: true, PresenceFields: fields, History: keptFew},
			{Pattern: "brief/{n}", SubscribeRule: &rule, PresenceRule: &sight, Presence: true, PresenceFields: fields, History: keptMany, HistoryTTL: time.Second},
			{Pattern: "lobby/{n}", SubscribeRule: &everybody, PresenceRule: &everybody, Presence: true, PresenceFields: fields, History: keptMany},
			{Pattern: "evict/{n}", SubscribeRule: &rule, History: 1},
		},
	})
	if err != nil {
		return err
	}
	return testserver.Serve(app, address, func(e *core.ServeEvent) error {
		for _, name := range []string{"members", "viewers"} {
			if _, err := e.App.FindCollectionByNameOrId(name); err == nil {
				continue // after a restart
			}
			if err := testserver.CreateMembers(e.App, name, "topic"); err != nil {
				return err
			}
		}
		group := e.Router.Group("/stress").Bind(apis.SkipSuccessActivityLog())
		group.POST("/publish", publish)
		group.POST("/member", setMember)
		group.POST("/tokens", tokens)
		group.POST("/name", setName)
		group.GET("/lag", lag)
		return nil
	})
}

// publish answers the message's id.
func publish(e *core.RequestEvent) error {
	var body struct {
		Topic string `json:"topic"`
		N     int    `json:"n"`
	}
	if err := e.BindBody(&body); err != nil {
		return err
	}
	send := func(app core.App) error { return topics.Notify(app, body.Topic, body.N) }
	if body.N%7 == 0 {
		return e.App.RunInTransaction(send)
	}
	return send(e.App)
}

// membership is a right of a user to a topic: of a member to subscribe, of a
// viewer to see who is there.
type membership struct {
	Collection string `json:"collection"` // members or viewers
	User       string `json:"user"`
	Topic      string `json:"topic"`
	On         bool   `json:"on"`
}

func setMember(e *core.RequestEvent) error {
	var m membership
	if err := e.BindBody(&m); err != nil {
		return err
	}
	record, err := e.App.FindFirstRecordByFilter(m.Collection, "user = {:user} && topic = {:topic}", map[string]any{"user": m.User, "topic": m.Topic})
	switch {
	case m.On && err != nil:
		collection, err := e.App.FindCollectionByNameOrId(m.Collection)
		if err != nil {
			return err
		}
		record = core.NewRecord(collection)
		record.Set("user", m.User)
		record.Set("topic", m.Topic)
		return e.App.Save(record)
	case !m.On && err == nil:
		return e.App.Delete(record)
	}
	return nil
}

// setName changes what is shown of a member.
func setName(e *core.RequestEvent) error {
	var body struct {
		User string `json:"user"`
		Name string `json:"name"`
	}
	if err := e.BindBody(&body); err != nil {
		return err
	}
	user, err := e.App.FindRecordById("users", body.User)
	if err != nil {
		return err
	}
	user.Set("name", body.Name)
	return e.App.SaveNoValidate(user)
}

// lag answers how many milliseconds of messages a kill would lose now.
func lag(e *core.RequestEvent) error {
	return e.JSON(http.StatusOK, topics.From(e.App).Stats().HistoryLag)
}

// tokens makes so many accounts.
func tokens(e *core.RequestEvent) error {
	var body struct {
		Count int `json:"count"`
	}
	if err := e.BindBody(&body); err != nil {
		return err
	}
	answer, err := testserver.CreateUsers(e.App, body.Count)
	if err != nil {
		return err
	}
	return e.JSON(http.StatusOK, answer)
}
