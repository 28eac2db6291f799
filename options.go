package topics

import (
	"strconv"

	"github.com/pocketbase/pocketbase/tools/subscriptions"
)

// subscribeOptions are what a subscriber asks for in its key. The SDKs put
// options that they do not know into the query.
type subscribeOptions struct {
	envelope bool   // messages and notices come as envelopes
	replay   int    // so many of the last messages first
	resume   string // the position is kept under this id
}

// maxResumeID is the longest resume option, in bytes.
const maxResumeID = 128

// optionsOf reads the options of a key. It reports false for values that make
// no sense; the key is then denied.
func optionsOf(o subscriptions.SubscriptionOptions) (read subscribeOptions, ok bool) {
	ok = true

	switch o.Query["envelope"] {
	case "", "false", "0":
	case "true", "1":
		read.envelope = true
	default:
		ok = false
	}

	if replay, given := o.Query["replay"]; given {
		n, err := strconv.Atoi(replay)
		if err != nil || n < 0 {
			ok = false
		}
		read.replay = n
	}

	if resume, given := o.Query["resume"]; given {
		if resume == "" || len(resume) > maxResumeID {
			ok = false
		}
		// a repeated message can only be recognised by its id
		read.resume, read.envelope = resume, true
	}

	return read, ok
}
