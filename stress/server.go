package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/pbtopics/topics"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"

	// the system collections
	_ "github.com/pocketbase/pocketbase/migrations"
)

const (
	overlap  = 2 * time.Second
	keptFew  = 40 // of the topics few/n
	keptMany = 5000
	maxLogs  = 6
)

// serve runs the server until it is told to stop or is killed.
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
	if err := app.Bootstrap(); err != nil {
		return err
	}
	app.OnServe().BindFunc(func(e *core.ServeEvent) error {
		if err := prepare(e.App); err != nil {
			return err
		}
		group := e.Router.Group("/stress").Bind(apis.SkipSuccessActivityLog())
		group.POST("/publish", publish)
		group.POST("/member", setMember)
		group.POST("/tokens", tokens)

		listener, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		e.Listener = listener
		fmt.Println(listener.Addr())
		return e.Next()
	})

	// as PocketBase does it
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	failed := make(chan error, 1)
	go func() { failed <- apis.Serve(app, apis.ServeConfig{HttpAddr: address}) }()
	select {
	case err := <-failed:
		return err
	case <-stop:
		return app.OnTerminate().Trigger(&core.TerminateEvent{App: app})
	}
}

func prepare(app core.App) error {
	if _, err := app.FindCollectionByNameOrId("members"); err == nil {
		return nil // after a restart
	}
	users, err := app.FindCollectionByNameOrId("users")
	if err != nil {
		return err
	}
	members := core.NewBaseCollection("members")
	members.Fields.Add(
		&core.TextField{Name: "topic"},
		&core.RelationField{Name: "user", CollectionId: users.Id, MaxSelect: 1},
	)
	members.AddIndex("idx_members", true, "topic, user", "")
	return app.Save(members)
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

// tokens makes so many accounts, or finds them.
func tokens(e *core.RequestEvent) error {
	var body struct {
		Count int `json:"count"`
	}
	if err := e.BindBody(&body); err != nil {
		return err
	}
	_, err := e.App.NonconcurrentDB().NewQuery(fmt.Sprintf(
		"WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i+1 FROM n WHERE i < %d) "+
			"INSERT OR IGNORE INTO users (id, email, tokenKey, password) SELECT 'user' || i, 'user' || i || '@stress.test', 'key' || i, 'x' FROM n", body.Count-1)).Execute()
	if err != nil {
		return err
	}
	users, err := e.App.FindAllRecords("users")
	if err != nil {
		return err
	}
	answer := map[string]string{}
	for _, u := range users {
		if answer[u.Id], err = u.NewAuthToken(); err != nil {
			return err
		}
	}
	return e.JSON(http.StatusOK, answer)
}
