package topics_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

// asText makes JSON the way json.Marshal does, inside of what an app may have
// around a value.
type asText struct{ v any }

func (a asText) MarshalJSON() ([]byte, error) { return json.Marshal(a.v) }

// oddTexts are what encoders write in different ways.
var oddTexts = []string{
	"<", ">", "&", "\u2028", "\u2029", "\u0085", "\u0084", "\u2027", "£", "“", "\\", `\u003c`, `\u2028`, `"`, "/", "\n", "u", "é", "😀",
}

func oddText(r *rand.Rand) string {
	var text strings.Builder
	for range r.IntN(8) {
		text.WriteString(oddTexts[r.IntN(len(oddTexts))])
	}
	return text.String()
}

func oddValue(r *rand.Rand, depth int) any {
	switch n := r.IntN(5); {
	case n == 0 && depth > 0:
		m := map[string]any{}
		for i := range r.IntN(4) {
			m[fmt.Sprint(i, oddText(r))] = oddValue(r, depth-1)
		}
		return m
	case n == 1 && depth > 0:
		list := []any{}
		for range r.IntN(4) {
			list = append(list, oddValue(r, depth-1))
		}
		return list
	case n == 2:
		return r.IntN(1000)
	default:
		return oddText(r)
	}
}

// plainLine is the one form in which v is sent, made in the simplest way.
func plainLine(t *testing.T, v any) string {
	t.Helper()
	var line bytes.Buffer
	e := json.NewEncoder(&line)
	e.SetEscapeHTML(false)
	require.NoError(t, e.Encode(v))
	return strings.ReplaceAll(strings.TrimSuffix(line.String(), "\n"), "\u0085", `\u0085`)
}

func TestOneFormOnAllWays(t *testing.T) {
	app := newApp(t, topics.Config{})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "a", "subscribeRule": "", "publishRule": "", "history": 1000})

	const resumed = `a?options={"query":{"replay":1000}}`
	const enveloped = `a?options={"query":{"envelope":true}}`
	c := s.connect()
	c.mustSubscribe("", "a", enveloped)
	c.drain()

	r := rand.New(rand.NewPCG(1, 2))
	var want []string
	sent := func(data, event string) {
		want = append(want, data)
		for range 2 {
			e := c.next()
			require.True(t, strings.HasPrefix(e.name, "a"))
			require.NotContains(t, e.data, "\u2028")
			require.NotContains(t, e.data, "\u2029")
			require.NotContains(t, e.data, "\u0085")
			if e.name == "a" {
				require.Equal(t, data, e.data)
				continue
			}
			require.True(t, strings.HasSuffix(e.data, `,"data":`+data+`}`), e.data)
			if event != "" {
				require.Contains(t, e.data, `,"event":`+event+`,`)
			}
		}
	}
	for range 60 {
		v := oddValue(r, 3)
		line, event := plainLine(t, v), oddText(r)
		eventLine := ""
		if event != "" {
			eventLine = plainLine(t, event)
		}

		require.NoError(t, topics.Notify(app, "a", v, topics.Event(event)))
		sent(line, eventLine)
		require.NoError(t, topics.Notify(app, "a", asText{v}))
		sent(line, "")
		escaped, err := json.Marshal(v)
		require.NoError(t, err)
		for _, raw := range []string{line, string(escaped)} {
			require.NoError(t, topics.Notify(app, "a", json.RawMessage(raw)))
			sent(line, "")
			name, err := json.Marshal(event)
			require.NoError(t, err)
			require.Equal(t, http.StatusOK, s.publish("", `{"topic":"a","event":`+string(name)+`,"data":`+raw+`}`).status)
			sent(line, eventLine)
		}
	}

	replayed := s.connect()
	replayed.mustSubscribe("", resumed)
	for i, data := range want {
		e := replayed.next()
		for strings.Contains(e.data, `"@topics"`) {
			e = replayed.next()
		}
		require.Equal(t, data, e.data, i)
	}

	page := s.request(http.MethodGet, "/api/topics/history?topic=a&limit=500", "", "")
	require.Equal(t, http.StatusOK, page.status)
	type kept struct {
		Data json.RawMessage `json:"data"`
	}
	var answer struct {
		Messages []kept `json:"messages"`
	}
	require.NoError(t, json.Unmarshal([]byte(page.body), &answer))
	require.Len(t, answer.Messages, len(want))
	for i, m := range answer.Messages {
		require.Equal(t, want[i], string(m.Data))
	}
}

// PocketBase's fields parameter stays, in the same form.
func TestHistoryFields(t *testing.T) {
	app := newApp(t, topics.Config{})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "a", "subscribeRule": "", "history": 10})
	require.NoError(t, topics.Notify(app, "a", "<\u2028>"))

	r := s.request(http.MethodGet, "/api/topics/history?topic=a&fields=messages.data,recovered", "", "")
	require.Equal(t, http.StatusOK, r.status)
	require.Equal(t, `{"messages":[{"data":"<\u2028>"}],"recovered":true}`, strings.TrimSpace(r.body))
}

// The limit counts what is sent, whichever way it came.
func TestOnePayloadLimit(t *testing.T) {
	app := newApp(t, topics.Config{MaxPayload: 100})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "a", "subscribeRule": "", "publishRule": ""})

	for name, tc := range map[string]struct {
		char string
		fits int
	}{
		"HTML":           {"<", 98},
		"ampersand":      {"&", 98},
		"line separator": {"\u2028", 16},
		"next line":      {"\u0085", 16},
		"letters":        {"x", 98},
	} {
		t.Run(name, func(t *testing.T) {
			for count, ok := range map[int]bool{tc.fits: true, tc.fits + 1: false} {
				text := strings.Repeat(tc.char, count)
				escaped, err := json.Marshal(text)
				require.NoError(t, err)
				for _, data := range []any{text, asText{text}, json.RawMessage(escaped), json.RawMessage(`"` + text + `"`)} {
					err := topics.Notify(app, "a", data)
					if ok {
						require.NoError(t, err)
					} else {
						require.ErrorIs(t, err, topics.ErrPayloadTooLarge)
					}
				}
				for _, data := range []string{string(escaped), `"` + text + `"`} {
					r := s.publish("", `{"topic":"a","data":`+data+`}`)
					if ok {
						require.Equal(t, http.StatusOK, r.status, r.body)
					} else {
						require.Equal(t, "payload_too_large", r.code("data"))
					}
				}
			}
		})
	}
}

// What members show comes in the same form, over the stream and over HTTP.
func TestOneFormOfMembers(t *testing.T) {
	app := newApp(t, topics.Config{})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "a", "subscribeRule": "", "presenceRule": "", "presence": true, "presenceFields": "name"})
	user, token := newUser(t, app, "ann")
	user.Set("name", "<a&\u2028>")
	require.NoError(t, app.Save(user))

	watcher := s.connect()
	watcher.mustSubscribe("", "a?options="+url.QueryEscape(`{"query":{"presence":true}}`))
	c := s.connect()
	c.mustSubscribe(token, "a?options="+url.QueryEscape(`{"query":{"state":{"x":"<&`+"\u2028\u0085"+`\u003e"}}}`))

	const record, state = `"record":{"name":"<a&\u2028>"}`, `"state":{"x":"<&\u2028\u0085>"}`
	for {
		e := watcher.next()
		if strings.Contains(e.data, user.Id) {
			require.Contains(t, e.data, record)
			require.Contains(t, e.data, state)
			break
		}
	}
	r := s.request(http.MethodGet, "/api/topics/presence?topic=a", "", "")
	require.Contains(t, r.body, record)
	require.Contains(t, r.body, state)
}
