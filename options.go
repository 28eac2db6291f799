package topics

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/pocketbase/pocketbase/tools/subscriptions"
)

// subscribeOptions are what a subscriber asks for in its key. The SDKs put
// options that they do not know into the query.
type subscribeOptions struct {
	envelope bool   // messages and notices come as envelopes
	replay   int    // so many of the last messages first
	resume   string // the position is kept under this id
	presence bool   // the members are shown
	state    []byte // what this connection shows as a member: an object, or nil
	others   bool   // there are options that only rules know
}

// noOptions are those of a key without any.
func noOptions() subscriptions.SubscriptionOptions {
	return subscriptions.SubscriptionOptions{Query: map[string]string{}, Headers: map[string]string{}}
}

// maxResumeID is the longest resume option, in bytes.
const maxResumeID = 128

// optionsOf reads the options of a key. It reports false for values that make
// no sense; the key is then denied.
func optionsOf(key string, o subscriptions.SubscriptionOptions) (read subscribeOptions, ok bool) {
	ok = true

	flag := func(name string) bool {
		switch o.Query[name] {
		case "", "false", "0":
			return false
		case "true", "1":
			return true
		default:
			ok = false
			return false
		}
	}
	read.presence = flag("presence")
	// what tells of members is no message of the topic
	read.envelope = flag("envelope") || read.presence

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
		read.resume, read.envelope = strings.Clone(resume), true
	}

	read.others = len(o.Headers) > 0
	for name := range o.Query {
		switch name {
		case "envelope", "presence", "replay", "resume", "state":
		default:
			read.others = true
		}
	}

	if _, given := o.Query["state"]; given {
		var err error
		read.state, err = stateOf(key)
		ok = ok && err == nil
	}

	return read, ok
}

var errState = errors.New("must be an object")

// stateOf reads the state option, which is more than the texts that core keeps
// of a key's options. It looks for them where core does.
func stateOf(key string) ([]byte, error) {
	u, err := url.Parse(key)
	if err != nil {
		return nil, err
	}
	var options map[string]json.RawMessage
	if err := json.Unmarshal([]byte(u.Query().Get("options")), &options); err != nil {
		return nil, err
	}
	var query map[string]json.RawMessage
	if err := json.Unmarshal(options["query"], &query); err != nil {
		return nil, err
	}

	raw := query["state"]
	var text string
	if json.Unmarshal(raw, &text) == nil && text != "" {
		raw = []byte(text) // an SDK that sends texts only
	}
	return readState(raw)
}

// readState expects JSON, and returns it in one line. null is no state. Of
// objects with duplicate keys it returns [ErrDuplicateKey].
func readState(raw []byte) ([]byte, error) {
	line, err := compact(raw)
	switch {
	case err != nil:
		return nil, err
	case string(line) == "null":
		return nil, nil
	case line[0] != '{' || len(line) > maxState || !utf8.Valid(line):
		return nil, errState
	}
	if key, found := duplicateKey(line); found {
		return nil, fmt.Errorf("%w: %q", ErrDuplicateKey, clip(key))
	}
	return line, nil
}
