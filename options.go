package topics

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/pocketbase/pocketbase/core"
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
	ok = readable(key)

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

// readable reports whether the options of a key are all read. Core takes those
// that it cannot read for none.
func readable(key string) bool {
	topic := topicOf(key)
	if !validTopic(topic) || len(topic) == len(key) {
		return true
	}
	u, err := url.Parse(optionsURL(key))
	if err != nil || strings.Contains(key, "#") { // of a URL it ends the query
		return false
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil || len(query["options"]) > 1 {
		return false
	}
	raw := query.Get("options")
	if raw == "" {
		return true
	}
	var options struct{ Query, Headers map[string]any }
	if json.Unmarshal([]byte(raw), &options) != nil {
		return false
	}
	for _, name := range singleOptions {
		switch options.Query[name].(type) {
		case map[string]any, []any:
			return false
		}
	}
	return true
}

// singleOptions have one value. Core reads an array and an object as nothing.
var singleOptions = append([]string{"envelope", "presence", "replay", "resume"}, recordOptions...)

// recordOptions are what the SDKs offer for record subscriptions. Nothing but a
// topic's rule can read them.
var recordOptions = []string{"expand", "fields", "filter", "sort"}

// denyIgnored refuses an option that somebody expects to do something, and that
// would do nothing.
func (p *Plugin) denyIgnored(app core.App, topic string, o subscriptions.SubscriptionOptions, presence bool) *denial {
	var rules []string // with their collection's view rule for @view
	for _, name := range recordOptions {
		if o.Query[name] == "" {
			continue
		}
		if rules == nil {
			d, err := p.rules.find(app, topic)
			if err != nil {
				return denyRuleError(err)
			}
			rules = d.texts(app, topic, presence)
		}
		if !slices.ContainsFunc(rules, func(text string) bool { return readsQuery(text, name) }) {
			return denyIgnoredOption(name)
		}
	}
	return nil
}

// texts returns the rules that a subscription is decided by, and one more that
// is empty.
func (d *definition) texts(app core.App, topic string, presence bool) []string {
	texts := []string{""}
	for _, a := range []action{actionSubscribe, actionPresence} {
		if d == nil || a == actionPresence && !presence {
			continue
		}
		if b, err := d.bind(app, a, topic); err == nil && b.text != nil {
			texts = append(texts, *b.text)
		}
	}
	return texts
}

// readsQuery reports whether a rule mentions @request.query.name.
func readsQuery(text, name string) bool {
	for {
		_, rest, found := strings.Cut(text, "@request.query."+name)
		switch {
		case !found:
			return false
		case rest == "" || !isWordByte(rest[0]):
			return true
		}
		text = rest
	}
}

func isWordByte(c byte) bool {
	return c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

var errState = errors.New("must be an object")

// stateOf reads the state option, which is more than the texts that core keeps
// of a key's options. It looks for them where core does.
func stateOf(key string) ([]byte, error) {
	u, err := url.Parse(optionsURL(key))
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
