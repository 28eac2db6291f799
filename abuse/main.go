// Command abuse measures what honest people notice while attackers do their
// worst with the rights that they have.
//
//	make abuse
//
// A server runs as a process of its own. Honest people exchange messages, lose
// their access, reconnect and read histories: first alone, which is the
// baseline, then beside a guest and an account with every right to one {param}
// topic, each with 10 connections. The attackers are a process of their own too.
// Their rate is bounded, so that the two do not compete for the processor but for
// what the plugin gives them: an ordinary request is one unit of work, one with
// 1,000 subscriptions or a megabyte is 40 of them, and each connection has 25
// units a second. They need a few hundredths of a processor.
//
// The program prints each figure beside its limit, and ends with status 1 and a
// list of faults if one is exceeded.
package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"time"
)

// These start the program as something else: serveEnv as the server on a data
// folder, attackEnv as the attackers of a plan, which is JSON.
const (
	serveEnv  = "TOPICS_ABUSE_SERVE"
	attackEnv = "TOPICS_ABUSE_ATTACK"
)

func main() {
	if code, other := otherProcess(); other {
		os.Exit(code)
	}

	o := options{}
	report := flag.String("report", "", "a file to which the figures are written too")
	flag.Uint64Var(&o.seed, "seed", rand.Uint64(), "of the random decisions")
	flag.DurationVar(&o.duration, "duration", time.Minute, "how long to go on, of which a quarter is the baseline")
	flag.IntVar(&o.rate, "rate", 25, "units of work a second of each attacking connection")
	flag.BoolVar(&o.proxied, "proxied", true, "the server knows the clients' addresses, by a proxy's header")
	flag.StringVar(&o.only, "only", "", "one kind of attack, for example clock-keys")
	flag.Parse()

	if !knownAttack(o.only) {
		os.Exit(status(fmt.Errorf("no attack is called %q", o.only)))
	}
	f, err := run(o)
	if f != nil {
		fmt.Print(f)
	}
	if err == nil && *report != "" {
		err = os.WriteFile(*report, []byte(f.String()), 0o644)
	}
	if err == nil && len(f.faults) > 0 {
		err = fmt.Errorf("%d faults", len(f.faults))
	}
	os.Exit(status(err))
}

// otherProcess does what this process was started for, if it is not the program
// itself, and returns its exit status.
func otherProcess() (code int, other bool) {
	if dir := os.Getenv(serveEnv); dir != "" {
		return status(serve(dir)), true
	}
	if plan := os.Getenv(attackEnv); plan != "" {
		return status(attack([]byte(plan))), true
	}
	return 0, false
}

// status is the process's exit status for err, which it prints.
func status(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, "abuse:", err)
		return 1
	}
	return 0
}
