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
// must not arrive, and what a kill may lose. With -burners other processes take
// the processor from all of them.
package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"time"
)

// serveEnv makes the program the server: it is the data folder. burnEnv makes it
// so many burners of CPU time.
const (
	serveEnv   = "TOPICS_STRESS_SERVE"
	addressEnv = "TOPICS_STRESS_ADDRESS"
	overlapEnv = "TOPICS_STRESS_OVERLAP"
	burnEnv    = "TOPICS_STRESS_BURN"
)

func main() {
	if code, other := otherProcess(); other {
		os.Exit(code)
	}

	o := options{}
	flag.Uint64Var(&o.seed, "seed", rand.Uint64(), "of the random decisions")
	flag.DurationVar(&o.duration, "duration", 20*time.Second, "how long to go on")
	flag.IntVar(&o.subscribers, "subscribers", 60, "how many there are")
	flag.DurationVar(&o.loses, "loses", killLoses, "what a kill of the server may lose, as a time")
	flag.IntVar(&o.burners, "burners", 0, "how many goroutines of another process burn CPU time")
	flag.Parse()

	f, err := run(o)
	fmt.Println(f)
	os.Exit(status(err))
}

// otherProcess does what this process was started for, if it is not the program
// itself, and returns its exit status.
func otherProcess() (code int, other bool) {
	if dir := os.Getenv(serveEnv); dir != "" {
		overlap, err := time.ParseDuration(os.Getenv(overlapEnv))
		if err == nil {
			err = serve(dir, os.Getenv(addressEnv), overlap)
		}
		return status(err), true
	}
	if count := os.Getenv(burnEnv); count != "" {
		return status(burn(count)), true
	}
	return 0, false
}

// status is the process's exit status for err, which it prints.
func status(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, "stress:", err)
		return 1
	}
	return 0
}
