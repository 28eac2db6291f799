// Command stress looks for a message that is lost, repeated, out of order or
// delivered without the right, and for a member who is shown wrongly, to the
// wrong ones or not at all, while everything goes wrong that can.
//
//	make stress
//
// A server with histories runs as a process of its own. Publishers publish,
// subscribers come with and without options, their connections are cut at any
// byte, some stop reading for a while, accounts lose their access or the sight of
// the members and get them back, change their names and states, and the server is
// stopped and killed. For each subscriber the program knows what may, must and
// must not arrive.
package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"time"
)

// serveEnv makes the program the server: it is the data folder.
const (
	serveEnv   = "TOPICS_STRESS_SERVE"
	addressEnv = "TOPICS_STRESS_ADDRESS"
)

func main() {
	if dir := os.Getenv(serveEnv); dir != "" {
		os.Exit(status(serve(dir, os.Getenv(addressEnv))))
	}

	o := options{}
	flag.Uint64Var(&o.seed, "seed", rand.Uint64(), "of the random decisions")
	flag.DurationVar(&o.duration, "duration", 20*time.Second, "how long to go on")
	flag.IntVar(&o.subscribers, "subscribers", 60, "how many there are")
	flag.Parse()

	f, err := run(o)
	fmt.Println(f)
	os.Exit(status(err))
}

// status is the process's exit status for err, which it prints.
func status(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, "stress:", err)
		return 1
	}
	return 0
}
