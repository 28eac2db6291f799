package topics

import (
	"errors"
	"fmt"
	"strings"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/subscriptions"
)

// maxTopicLength is the longest topic and the longest pattern, in bytes.
const maxTopicLength = 255

// Topics that PocketBase itself sends to (apis/realtime.go and
// apis/record_auth_with_oauth2_redirect.go).
const (
	topicConnect = "PB_CONNECT"
	topicOAuth2  = "@oauth2"
)

// validTopic reports whether topic is 1 or more non-empty segments of ASCII
// letters, digits and -_.:@~ joined by slashes, at most 255 bytes in all.
func validTopic(topic string) bool {
	if topic == "" || len(topic) > maxTopicLength {
		return false
	}

	inSegment := false
	for i := range len(topic) {
		switch c := topic[i]; {
		case c == '/':
			if !inSegment {
				return false
			}
			inSegment = false
		case isTopicByte(c):
			inSegment = true
		default:
			return false
		}
	}

	return inSegment
}

func isTopicByte(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	return strings.IndexByte("-_.:@~", c) >= 0
}

// reservedTopic reports whether PocketBase may send to topic by itself, so
// that its own rules guard it: the connect and OAuth2 messages, and record
// events, whose topics are <collection> and <collection>/<record id or *>
// with the collection's name or id.
func reservedTopic(app core.App, topic string) bool {
	if topic == topicConnect || topic == topicOAuth2 {
		return true
	}

	first, rest, _ := strings.Cut(topic, "/")
	if strings.Contains(rest, "/") {
		return false
	}

	c, err := app.FindCachedCollectionByNameOrId(first)

	// the lookup ignores case, record event topics do not
	return err == nil && (c.Name == first || c.Id == first)
}

// topicOf returns the topic of a subscription key: what comes before the
// first "?". This is how core finds the keys of a topic (it looks for the
// prefix topic+"?" in key+"?"). It does not keep a key with options alive.
func topicOf(key string) string {
	topic, _, options := strings.Cut(key, "?")
	if options {
		topic = strings.Clone(topic)
	}
	return topic
}

// parseKeys returns the options of each of the keys, without empty and repeated
// keys. It asks core's own client, because JS and Dart encode options
// differently, and the details change between versions. Of a topic's key the
// client is given the options alone: as a URL, core refuses some topics (a colon
// in the first segment) and would lose their options.
func parseKeys(keys []string) map[string]subscriptions.SubscriptionOptions {
	asked := make([]string, len(keys))
	for i, key := range keys {
		asked[i] = optionsURL(key)
	}
	c := subscriptions.NewDefaultClient()
	c.Subscribe(asked...)
	parsed := c.Subscriptions()

	options := make(map[string]subscriptions.SubscriptionOptions, len(keys))
	for i, key := range keys {
		if key != "" {
			options[key] = parsed[asked[i]]
		}
	}
	return options
}

// optionsURL is the key with a topic that every parser of URLs accepts, where
// its own is a valid one. Other keys are core's to read.
func optionsURL(key string) string {
	const topic = "topic"

	switch own := topicOf(key); {
	case !validTopic(own):
		return key
	case len(own) == len(key):
		return topic
	default:
		return topic + key[len(own):]
	}
}

// param is a named part of a topic: {room} of room/{room}.
type param struct {
	name  string
	value string
}

type params []param

func (ps params) get(name string) (string, bool) {
	for _, p := range ps {
		if p.name == name {
			return p.value, true
		}
	}
	return "", false
}

type segmentKind uint8

// From the most to the least specific.
const (
	segmentLiteral segmentKind = iota
	segmentParam
	segmentRest
)

type segment struct {
	kind segmentKind
	text string // the literal, or the parameter's name
}

// pattern is a topic template: literal segments, {param} segments, and at the
// end possibly a {rest...} that takes one or more segments.
type pattern struct {
	raw      string
	segments []segment
}

func parsePattern(raw string) (pattern, error) {
	if raw == "" {
		return pattern{}, errors.New("must not be empty")
	}
	if len(raw) > maxTopicLength {
		return pattern{}, fmt.Errorf("must not be longer than %d bytes", maxTopicLength)
	}

	parts := strings.Split(raw, "/")
	p := pattern{raw: raw, segments: make([]segment, 0, len(parts))}
	if takenName(raw) {
		return pattern{}, fmt.Errorf("%q %w", raw, errTakenName)
	}

	for i, part := range parts {
		s, err := parseSegment(part)
		if err != nil {
			return pattern{}, fmt.Errorf("segment %d: %w", i+1, err)
		}
		if s.kind == segmentRest && i != len(parts)-1 {
			return pattern{}, fmt.Errorf("segment %d: {%s...} takes the remainder, so it must be the last segment", i+1, s.text)
		}
		if s.kind != segmentLiteral && p.has(s.text) {
			return pattern{}, fmt.Errorf("segment %d: the parameter %q occurs twice", i+1, s.text)
		}
		p.segments = append(p.segments, s)
	}

	return p, nil
}

func parseSegment(part string) (segment, error) {
	if part == "" {
		return segment{}, errors.New("must not be empty")
	}

	name, isParam := strings.CutPrefix(part, "{")
	if !isParam {
		if !validTopic(part) {
			return segment{}, fmt.Errorf("%q may only have letters, digits and -_.:@~, or be a whole {param}", part)
		}
		return segment{kind: segmentLiteral, text: part}, nil
	}

	name, closed := strings.CutSuffix(name, "}")
	if !closed {
		return segment{}, fmt.Errorf("%q does not end with }", part)
	}

	s := segment{kind: segmentParam}
	if rest, ok := strings.CutSuffix(name, "..."); ok {
		s.kind, name = segmentRest, rest
	}
	if !validParamName(name) {
		return segment{}, fmt.Errorf("%q is not a parameter name: use letters, digits and _, and do not begin with a digit", name)
	}
	s.text = name

	return s, nil
}

func validParamName(name string) bool {
	for i := range len(name) {
		c := name[i]
		letter := c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return name != ""
}

// has reports whether the pattern has a parameter of that name.
func (p pattern) has(name string) bool {
	for _, s := range p.segments {
		if s.kind != segmentLiteral && s.text == name {
			return true
		}
	}
	return false
}

// shape is equal for patterns that match the same topics: it leaves the
// parameters' names out.
func (p pattern) shape() string {
	var b strings.Builder
	for i, s := range p.segments {
		if i > 0 {
			b.WriteByte('/')
		}
		switch s.kind {
		case segmentLiteral:
			b.WriteString(s.text)
		case segmentParam:
			b.WriteString("{}")
		case segmentRest:
			b.WriteString("{...}")
		}
	}
	return b.String()
}

// names returns the names of the parameters, in the order of params.
func (p pattern) names() []string {
	var names []string
	for _, s := range p.segments {
		if s.kind != segmentLiteral {
			names = append(names, s.text)
		}
	}
	return names
}

// params returns the values that topic, which the pattern must match, gives
// to the parameters.
func (p pattern) params(topic string) params {
	var ps params
	for _, s := range p.segments {
		if s.kind == segmentRest {
			return append(ps, param{s.text, topic})
		}

		var value string
		value, topic, _ = strings.Cut(topic, "/")
		if s.kind == segmentParam {
			ps = append(ps, param{s.text, value})
		}
	}
	return ps
}

// patternTree finds the most specific pattern of a topic: from the left, a
// literal beats a parameter beats a rest.
type patternTree[T any] struct {
	literals map[string]*patternTree[T]
	param    *patternTree[T]
	rest     *T
	leaf     *T
}

// add puts value at the pattern's place and returns what was there before.
func (t *patternTree[T]) add(p pattern, value *T) *T {
	for _, s := range p.segments {
		switch s.kind {
		case segmentRest:
			old := t.rest
			t.rest = value
			return old
		case segmentParam:
			if t.param == nil {
				t.param = new(patternTree[T])
			}
			t = t.param
		case segmentLiteral:
			next := t.literals[s.text]
			if next == nil {
				next = new(patternTree[T])
				if t.literals == nil {
					t.literals = map[string]*patternTree[T]{}
				}
				t.literals[s.text] = next
			}
			t = next
		}
	}

	old := t.leaf
	t.leaf = value
	return old
}

// find expects a valid topic. It answers nil when no pattern matches.
func (t *patternTree[T]) find(topic string) *T {
	first, remainder, more := strings.Cut(topic, "/")

	for _, next := range []*patternTree[T]{t.literals[first], t.param} {
		if next == nil {
			continue
		}
		if !more && next.leaf != nil {
			return next.leaf
		}
		if more {
			if found := next.find(remainder); found != nil {
				return found
			}
		}
	}

	return t.rest
}
