package testserver

import (
	"fmt"
	"io"
	"net"
	"os"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"

	// the system collections
	_ "github.com/pocketbase/pocketbase/migrations"
)

// Serve runs the app until standard input ends, which it does with the process
// that has called Start. The app is prepared before anybody can connect.
func Serve(app core.App, address string, prepare func(*core.ServeEvent) error) error {
	if err := app.Bootstrap(); err != nil {
		return err
	}
	app.OnServe().BindFunc(func(e *core.ServeEvent) error {
		if err := prepare(e); err != nil {
			return err
		}
		// whoever connects from here on is served, if only a little later
		listener, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		e.Listener = listener
		fmt.Println(listener.Addr())
		return e.Next()
	})

	failed, told := make(chan error, 1), make(chan struct{})
	go func() { failed <- apis.Serve(app, apis.ServeConfig{HttpAddr: address}) }()
	go func() {
		defer close(told)
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	select {
	case err := <-failed:
		return err
	case <-told:
		return app.OnTerminate().Trigger(&core.TerminateEvent{App: app}) // as PocketBase does it
	}
}

// CreateMembers makes a collection of users by something, which the given text
// field says: of who is a member of what.
func CreateMembers(app core.App, name, field string) error {
	users, err := app.FindCollectionByNameOrId("users")
	if err != nil {
		return err
	}
	members := core.NewBaseCollection(name)
	members.Fields.Add(
		&core.TextField{Name: field},
		&core.RelationField{Name: "user", CollectionId: users.Id, MaxSelect: 1},
	)
	members.AddIndex("idx_"+name, true, field+", user", "")
	return app.Save(members)
}

// CreateUsers makes user0, user1 and so on, those that are missing, and returns
// their tokens. A password hash for each would take too long.
func CreateUsers(app core.App, count int) (map[string]string, error) {
	_, err := app.NonconcurrentDB().NewQuery(fmt.Sprintf(
		"WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i+1 FROM n WHERE i < %d) "+
			"INSERT OR IGNORE INTO users (id, email, tokenKey, password) SELECT 'user' || i, 'user' || i || '@topics.test', 'key' || i, 'x' FROM n", count-1)).Execute()
	if err != nil {
		return nil, err
	}
	users, err := app.FindAllRecords("users")
	if err != nil {
		return nil, err
	}
	tokens := make(map[string]string, len(users))
	for _, u := range users {
		if tokens[u.Id], err = u.NewAuthToken(); err != nil {
			return nil, err
		}
	}
	return tokens, nil
}
