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
	overlap  = 2 * time.Second
	keptFew  = 40 // of the topics few/n
	keptMany = 5000
	maxLogs  = 6
)

// serve runs the server.
func serve(dir, address string) error {
	app := core.NewBaseApp(core.BaseAppConfig{DataDir: dir})
	rule := "@request.auth.id != '' && @collection.members.user ?= @request.auth.id && @collection.members.topic ?= @topic"
	err := topics.Register(app, topics.Config{
		QueueMessages:   64,
		WriteTimeout:    5 * time.Second,
		HistoryMessages: keptMany,
		HistoryBytes:    16 << 20,
		ResumeOverlap:   overlap,
		MaxTopics:       maxLogs,
		Topics: []topics.Topic{
			{Pattern: "many/{n}", SubscribeRule: &rule, History: keptMany},
			{Pattern: "few/{n}", SubscribeRule: &rule, History: keptFew},
			{Pattern: "brief/{n}", SubscribeRule: &rule, History: keptMany, HistoryTTL: time.Second},
			{Pattern: "evict/{n}", SubscribeRule: &rule, History: 1},
		},
	})
	if err != nil {
		return err
	}
	return testserver.Serve(app, address, func(e *core.ServeEvent) error {
		if _, err := e.App.FindCollectionByNameOrId("members"); err != nil { // else after a restart
			if err := testserver.CreateMembers(e.App, "topic"); err != nil {
				return err
			}
		}
		group := e.Router.Group("/stress").Bind(apis.SkipSuccessActivityLog())
		group.POST("/publish", publish)
		group.POST("/member", setMember)
		group.POST("/tokens", tokens)
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

type membership struct {
	User  string `json:"user"`
	Topic string `json:"topic"`
	On    bool   `json:"on"`
}

func setMember(e *core.RequestEvent) error {
	var m membership
	if err := e.BindBody(&m); err != nil {
		return err
	}
	record, err := e.App.FindFirstRecordByFilter("members", "user = {:user} && topic = {:topic}", map[string]any{"user": m.User, "topic": m.Topic})
	switch {
	case m.On && err != nil:
		members, err := e.App.FindCollectionByNameOrId("members")
		if err != nil {
			return err
		}
		record = core.NewRecord(members)
		record.Set("user", m.User)
		record.Set("topic", m.Topic)
		return e.App.Save(record)
	case !m.On && err == nil:
		return e.App.Delete(record)
	}
	return nil
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
