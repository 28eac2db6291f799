package topics

import (
	"net/url"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/tools/subscriptions"
	"github.com/stretchr/testify/require"
)

func TestValidTopic(t *testing.T) {
	for _, topic := range []string{
		"a", "room/42", "a/b/c/d", "-_.:@~", "A/z/0/9", "user@host:80", "..", "1chat:2",
		strings.Repeat("a", 255),
	} {
		require.True(t, validTopic(topic), topic)
	}
	for _, topic := range []string{
		"", "/", "/a", "a/", "a//b", "a b", "a\nb", "a\x00", "ä", "a?b", "a#b", "a%20b", "a*", "{a}", "a+b", "a\\b", "a,b",
		strings.Repeat("a", 256),
	} {
		require.False(t, validTopic(topic), topic)
	}
}

func TestParsePattern(t *testing.T) {
	for raw, shape := range map[string]string{
		"announcements":    "announcements",
		"room/{room}":      "room/{}",
		"{any}":            "{}",
		"{rest...}":        "{...}",
		"user/{id}/inbox":  "user/{}/inbox",
		"files/{path...}":  "files/{...}",
		"{a}/{b}/{c...}":   "{}/{}/{...}",
		"a/{_under_1}":     "a/{}",
		"v1.0/@me/{id}/~x": "v1.0/@me/{}/~x",
	} {
		p, err := parsePattern(raw)
		require.NoError(t, err, raw)
		require.Equal(t, shape, p.shape())
	}

	for raw, fault := range map[string]string{
		"":                       "must not be empty",
		"a//b":                   "segment 2: must not be empty",
		"a/":                     "segment 2: must not be empty",
		"a/{}":                   "not a parameter name",
		"a/{1}":                  "not a parameter name",
		"a/{x-y}":                "not a parameter name",
		"a/{...}":                "not a parameter name",
		"a/{b":                   "does not end with }",
		"a/b}":                   "may only have",
		"a/x{b}":                 "may only have",
		"a/{b}x":                 "does not end with }",
		"{a...}/b":               "must be the last segment",
		"{a}/{a}":                "occurs twice",
		"a b":                    "may only have",
		"a/*":                    "may only have",
		strings.Repeat("a", 256): "must not be longer",
	} {
		_, err := parsePattern(raw)
		require.ErrorContains(t, err, fault, raw)
	}
}

func TestMostSpecificPatternWins(t *testing.T) {
	var tree patternTree[string]
	for _, raw := range []string{
		"room/lobby", "room/{id}", "room/{id}/typing", "room/{id...}", "{kind}/lobby", "{kind}/{id}/x", "{all...}",
		"a/{x}/c", "a/b/{rest...}",
	} {
		p, err := parsePattern(raw)
		require.NoError(t, err)
		require.Nil(t, tree.add(p, &raw))
	}

	for topic, want := range map[string]string{
		"room/lobby":      "room/lobby",
		"room/1":          "room/{id}",
		"room/1/typing":   "room/{id}/typing",
		"room/1/x":        "room/{id...}", // from the left: the literal room beats {kind}
		"room/1/2/3":      "room/{id...}",
		"hall/lobby":      "{kind}/lobby",
		"hall/1/x":        "{kind}/{id}/x",
		"hall/1":          "{all...}",
		"room":            "{all...}",
		"a/b/c":           "a/b/{rest...}", // the literal b beats {x}
		"a/z/c":           "a/{x}/c",
		"a/b":             "{all...}", // a rest takes at least one segment
		"room/lobby/deep": "room/{id...}",
	} {
		found := tree.find(topic)
		require.NotNil(t, found, topic)
		require.Equal(t, want, *found, topic)
	}

	var empty patternTree[string]
	require.Nil(t, empty.find("room/1"))
}

func TestPatternParams(t *testing.T) {
	p, err := parsePattern("org/{org}/files/{path...}")
	require.NoError(t, err)

	ps := p.params("org/acme/files/a/b/c")
	require.Equal(t, params{{"org", "acme"}, {"path", "a/b/c"}}, ps)

	value, ok := ps.get("path")
	require.True(t, ok)
	require.Equal(t, "a/b/c", value)
	_, ok = ps.get("files")
	require.False(t, ok)
}

// What is authorised must be what core subscribes: the topic that we take out
// of a key is the one whose messages core's own client would be found for.
func FuzzKeyIsReadAsCoreReadsIt(f *testing.F) {
	for _, key := range []string{
		"", "room/42", "room/42?", `room/42?options={"query":{"a":1},"headers":{"X-Token":"b"}}`,
		"room/42?options=%7B%22query%22%3A%7B%22envelope%22%3Atrue%7D%7D", "1chat:2?options=%7B%7D", "chat_room:42?options=%7B%22query%22%3A%7B%22a%22%3A1%7D%7D", ":42?options=%7B%7D", "a%?options=%7B%7D",
		"a#b?options=%7B%7D", "a?b?options=%7B%7D", "a?x=1&options=%7B%22query%22%3A%7B%22q%22%3A%5B1%5D%7D%7D", "rooms/*", "a\nb", "?options={}",
		"a?options=%7B%22query%22%3Anull%7D", "a?options=1&options=2",
	} {
		f.Add(key)
	}
	f.Fuzz(func(t *testing.T, key string) {
		c := subscriptions.NewDefaultClient()
		c.Subscribe(key)

		if key == "" {
			require.Empty(t, parseKeys([]string{key}))
			return
		}
		options := parseKeys([]string{key})
		if _, err := url.Parse(key); err == nil {
			require.Equal(t, c.Subscriptions(), options)
		}

		topic := topicOf(key)
		require.Contains(t, c.Subscriptions(topic+"?"), key)
		for i := range topic {
			// no shorter topic finds it
			require.NotContains(t, c.Subscriptions(topic[:i]+"?"), key)
		}
		if validTopic(topic) {
			// the options are the same whatever the topic
			other := "other" + key[len(topic):]
			require.Equal(t, parseKeys([]string{other})[other], options[key])
			_, readHere := optionsOf(key, options[key])
			_, readThere := optionsOf(other, options[key])
			require.Equal(t, readThere, readHere)
			require.False(t, strings.ContainsAny(topic, "?\r\n\x00"))
		}
	})
}

// Every pattern that parses matches its own literal form, and gives back the
// parameters that were put in.
func FuzzPattern(f *testing.F) {
	for _, raw := range []string{"room/{id}", "a/{b}/{c...}", "{x}", "a//b", "{a}/{a}", "{", "a/{b...}/c", "@oauth2", "é"} {
		f.Add(raw, "v1")
	}
	f.Fuzz(func(t *testing.T, raw, value string) {
		p, err := parsePattern(raw)
		if err != nil {
			return
		}
		if !validTopic(value) || strings.Contains(value, "/") {
			return
		}

		segments := make([]string, len(p.segments))
		for i, s := range p.segments {
			segments[i] = value
			if s.kind == segmentLiteral {
				segments[i] = s.text
			}
		}
		topic := strings.Join(segments, "/")
		if !validTopic(topic) {
			require.Greater(t, len(topic), maxTopicLength)
			return
		}

		var tree patternTree[pattern]
		tree.add(p, &p)
		require.Same(t, &p, tree.find(topic))
		for _, ps := range p.params(topic) {
			require.Equal(t, value, ps.value)
		}
	})
}
