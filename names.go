package topics

import (
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"
)

// An event's name is its subscription's key. So a topic may not be called as
// something that the client's parser, browser or SDK takes for its own.

// takenNames are exact: the names of events are case-sensitive.
var takenNames = map[string]struct{}{
	// of EventSource, and of its substitutes for React Native (close, done) and
	// Node (newListener, removeListener); message is also an event without a name
	"error": {}, "open": {}, "message": {}, "close": {}, "done": {}, "newListener": {}, "removeListener": {},

	// the SDKs'; PocketBase sends it itself
	topicConnect: {},

	// members of Object.prototype, which the JS SDK finds in its map of keys
	"__proto__": {}, "__defineGetter__": {}, "__defineSetter__": {}, "__lookupGetter__": {}, "__lookupSetter__": {},
	"constructor": {}, "hasOwnProperty": {}, "isPrototypeOf": {}, "propertyIsEnumerable": {},
	"toLocaleString": {}, "toString": {}, "valueOf": {},
}

var errTakenName = errors.New("is a name that browsers or SDKs take for an event or a property of their own")

// takenName reports whether clients would take an event of that name for one of
// their own. The Dart SDK drops colons at the beginning of a name.
func takenName(name string) bool {
	_, taken := takenNames[strings.TrimLeft(name, ":")]
	return taken
}

// injectsSSE reports whether the key, used as an event name, would be read as
// another one: it would end its line in the event stream, some parser drops a
// part of it (NUL, white space at its ends), or it is not UTF-8.
func injectsSSE(key string) bool {
	first, _ := utf8.DecodeRuneInString(key)
	last, _ := utf8.DecodeLastRuneInString(key)
	return unicode.IsSpace(first) || unicode.IsSpace(last) ||
		strings.ContainsAny(key, "\r\n\x00\v\f\x1c\x1d\x1e\u0085\u2028\u2029") ||
		!utf8.ValidString(key)
}

// hears reports whether what is sent under the key reaches the key's listener,
// and nothing else.
func hears(key string) bool { return !injectsSSE(key) && !takenName(key) }
