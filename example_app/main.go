// Command example_app is a small chat on PocketBase with topic rules.
//
//	go run ./example_app serve
//
// Its first start seeds three accounts, a room and the topic rules (seed.go);
// the page is at http://127.0.0.1:8090/. All the flags and commands of
// PocketBase work. There is no demo superuser, make one with:
//
//	go run ./example_app superuser upsert you@example.com a-long-password
package main

import (
	"log"

	"github.com/pbtopics/topics"
	"github.com/pocketbase/pocketbase"
	"github.com/pocketbase/pocketbase/core"
)

func main() {
	app := pocketbase.New()

	register(app)

	if err := app.Start(); err != nil {
		log.Fatal(err)
	}
}

// register adds everything of the example to app.
func register(app core.App) {
	topics.MustRegister(app, topics.Config{})

	bindNotify(app)
	bindRooms(app)
	bindPage(app)
}
