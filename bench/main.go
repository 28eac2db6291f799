// Command bench measures fan-out over real event stream connections: of the
// notify loop that PocketBase's documentation describes (the baseline), of
// PocketBase's record events, and of this module.
//
//	make bench
//
// Each server is a process of its own, started anew for every measurement; this
// process opens the connections, publishes, and checks what arrives: every
// message once, in order, and in one order for all subscribers. The servers are
// measured in alternation, so that a change of the machine's mood meets all.
package main

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"time"
)

type options struct {
	scenario *regexp.Regexp
	rounds   int
	duration time.Duration
	scale    float64
	profiles string
}

// serveEnv makes the program one of the servers.
const serveEnv = "TOPICS_BENCH_SERVE"

func main() {
	if k := os.Getenv(serveEnv); k != "" {
		os.Exit(status(serve(kind(k))))
	}

	scenario := flag.String("scenario", ".", "run the scenarios whose name matches this `regexp`")
	opts := options{}
	flag.IntVar(&opts.rounds, "rounds", 3, "measure each server this often; the table has the medians")
	flag.DurationVar(&opts.duration, "duration", 2*time.Second, "how long each measurement publishes")
	flag.Float64Var(&opts.scale, "scale", 1, "multiplies the numbers of connections")
	flag.StringVar(&opts.profiles, "profiles", "", "write CPU profiles of the servers to this `folder`")
	flag.Parse()

	var err error
	if opts.scenario, err = regexp.Compile(*scenario); err != nil {
		os.Exit(status(err))
	}
	_, err = run(opts, os.Stdout)
	os.Exit(status(err))
}

// status is the process's exit status for err, which it prints.
func status(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}
