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
	"os"

	"github.com/pbtopics/topics"
	"github.com/pocketbase/pocketbase"
	"github.com/pocketbase/pocketbase/core"
)

func main() {
	app := pocketbase.New()

	var config topics.Config
	app.RootCmd.PersistentFlags().DurationVar(&config.PresenceGrace, "grace", 0,
		"how long a member stays after the last connection has gone, 0 for the plugin's default")
	if err := app.RootCmd.ParseFlags(os.Args[1:]); err != nil {
		log.Fatal(err)
	}

	register(app, config)

	if err := app.Start(); err != nil {
		log.Fatal(err)
	}
}

// register adds everything of the example to app.
func register(app core.App, config topics.Config) {
	topics.MustRegister(app, config)

	bindNotify(app)
	bindRooms(app)
	bindPage(app)
}
