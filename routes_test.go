package topics_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/core"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

func TestPublish(t *testing.T) {
	app := newApp(t, topics.Config{})
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "a/{x}", "subscribeRule": "", "publishRule": "@request.auth.id != '' && @request.body.data.kind = 'text' && @request.body.topic = @topic"})
	define(t, app, map[string]any{"pattern": "public", "subscribeRule": "", "publishRule": ""})
	_, ann := newUser(t, app, "ann")
	c := s.connect()
	c.mustSubscribe("", "a/1", "a/2", "public")

	r := s.publish(ann, "{\"topic\":\"a/1\",\"data\":{ \"kind\": \"text\",\n \"big\": 12345678901234567890, \"z\":1,\"a\":1.50 }}")
	require.Equal(t, 200, r.status, r.body)
	require.JSONEq(t, `{"id":""}`, r.body)
	require.Equal(t, `{"kind":"text","big":12345678901234567890,"z":1,"a":1.50}`, c.next().data, "exactly what was sent, on one line")

	r = s.publish(ann, `{"messages":[{"topic":"a/1","data":{"kind":"text"}},{"topic":"public","data":null},{"topic":"a/2","data":{"kind":"text"}}]}`)
	require.Equal(t, 200, r.status, r.body)
	require.JSONEq(t, `{"messages":[{"id":""},{"id":""},{"id":""}]}`, r.body)
	require.Equal(t, "a/1", c.next().name)
	require.Equal(t, "public", c.next().name)
	require.Equal(t, "a/2", c.next().name)

	for name, tc := range map[string]struct {
		token, body string
		status      int
		code        string
		path        []string
	}{
		"guest":           {"", `{"topic":"a/1","data":{"kind":"text"}}`, 403, "topic_denied", []string{"topic"}},
		"rule on body":    {ann, `{"topic":"a/1","data":{"kind":"admin"}}`, 403, "topic_denied", []string{"topic"}},
		"other case":      {ann, `{"topic":"a/1","Topic":"a/2","Data":{"kind":"text"},"data":{}}`, 403, "topic_denied", []string{"topic"}},
		"unknown":         {ann, `{"topic":"nowhere","data":1}`, 403, "topic_unknown", []string{"topic"}},
		"malformed":       {ann, `{"topic":"a//b","data":1}`, 400, "topic_malformed", []string{"topic"}},
		"with options":    {ann, `{"topic":"public?options={}","data":1}`, 400, "topic_malformed", []string{"topic"}},
		"encoded":         {ann, `{"topic":"ope%6e","data":1}`, 400, "topic_malformed", []string{"topic"}},
		"line break":      {ann, `{"topic":"public\nid:1","data":1}`, 400, "topic_malformed", []string{"topic"}},
		"oversized":       {ann, `{"topic":"` + strings.Repeat("a", 256) + `","data":1}`, 400, "topic_malformed", []string{"topic"}},
		"collection":      {ann, `{"topic":"users","data":1}`, 400, "topic_reserved", []string{"topic"}},
		"record":          {ann, `{"topic":"users/x","data":1}`, 400, "topic_reserved", []string{"topic"}},
		"connect":         {ann, `{"topic":"PB_CONNECT","data":1}`, 400, "topic_reserved", []string{"topic"}},
		"no topic":        {ann, `{"data":1}`, 400, "topic_required", []string{"topic"}},
		"topic no text":   {ann, `{"topic":["public"],"data":1}`, 400, "topic_required", []string{"topic"}},
		"no data":         {ann, `{"topic":"public"}`, 400, "payload_required", []string{"data"}},
		"control":         {ann, `{"topic":"public","data":{"@topics":1}}`, 400, "payload_reserved", []string{"data"}},
		"escaped control": {ann, `{"topic":"public","data":{"\u0040topics":1}}`, 400, "payload_reserved", []string{"data"}},
		"too large":       {ann, `{"topic":"public","data":"` + strings.Repeat("a", 64<<10) + `"}`, 400, "payload_too_large", []string{"data"}},
		"except":          {ann, `{"topic":"public","data":1,"except":1}`, 400, "except_invalid", []string{"except"}},
		"long except":     {ann, `{"topic":"public","data":1,"except":"` + strings.Repeat("a", 256) + `"}`, 400, "except_invalid", []string{"except"}},
		"data twice":      {ann, `{"topic":"public","data":1,"data":2}`, 400, "payload_duplicate_key", []string{"body"}},
		"topic twice":     {ann, `{"topic":"a/1","topic":"public","data":1}`, 400, "payload_duplicate_key", []string{"body"}},
		"topic escaped":   {ann, `{"topic":"a/1","\u0074opic":"public","data":1}`, 400, "payload_duplicate_key", []string{"body"}},
		"key twice":       {ann, `{"topic":"a/1","data":{"kind":"admin","kind":"text"}}`, 400, "payload_duplicate_key", []string{"data"}},
		"key escaped":     {ann, `{"topic":"a/1","data":{"kind":"admin","\u006bind":"text"}}`, 400, "payload_duplicate_key", []string{"data"}},
		"deep key twice":  {ann, `{"topic":"public","data":[{"a":{"b":1}},{"a":{"b":1,"b":2}}]}`, 400, "payload_duplicate_key", []string{"data"}},
		"other key twice": {ann, `{"topic":"public","data":1,"x":[{"a":1,"a":2}]}`, 400, "payload_duplicate_key", []string{"body"}},
		"messages twice":  {ann, `{"messages":[{"topic":"public","data":1}],"messages":[{"topic":"public","data":1}]}`, 400, "payload_duplicate_key", []string{"body"}},
		"twice in many":   {ann, `{"messages":[{"topic":"public","data":1},{"topic":"public","data":{"a":1,"a":2}}]}`, 400, "payload_duplicate_key", []string{"messages", "1", "data"}},
		"twice of many":   {ann, `{"messages":[{"topic":"public","data":1},{"topic":"public","data":1,"data":2}]}`, 400, "payload_duplicate_key", []string{"messages", "1", "body"}},
		"twice by many":   {ann, `{"messages":[{"topic":"public","data":1}],"x":{"a":1,"a":2}}`, 400, "payload_duplicate_key", []string{"body"}},
		"no JSON":         {ann, `topic=open&data=1`, 400, "body_invalid", []string{"body"}},
		"null":            {ann, `null`, 400, "body_invalid", []string{"body"}},
		"empty":           {ann, ``, 400, "body_invalid", []string{"body"}},
		"list":            {ann, `[]`, 400, "body_invalid", []string{"body"}},
		"bad UTF-8":       {ann, "{\"topic\":\"open\",\"data\":\"\xff\"}", 400, "body_invalid", []string{"body"}},
		"number range":    {ann, `{"topic":"public","data":1e999}`, 400, "body_invalid", []string{"body"}},
		"no messages":     {ann, `{"messages":[]}`, 400, "messages_invalid", []string{"messages"}},
		"messages type":   {ann, `{"messages":{}}`, 400, "messages_invalid", []string{"messages"}},
		"too many":        {ann, `{"messages":[` + strings.Repeat(`{"topic":"public","data":1},`, 100) + `{"topic":"public","data":1}]}`, 400, "too_many_messages", []string{"messages"}},
		"one of many":     {ann, `{"messages":[{"topic":"public","data":1},{"topic":"a/1","data":1}]}`, 403, "topic_denied", []string{"messages", "1", "topic"}},
		"bad of many":     {ann, `{"messages":[{"topic":"public","data":1},{"topic":"public"}]}`, 400, "payload_required", []string{"messages", "1", "data"}},
		"type of many":    {ann, `{"messages":[{"topic":"public","data":1},1]}`, 400, "body_invalid", []string{"messages", "1", "body"}},
		"huge":            {ann, `{"topic":"public","data":"` + strings.Repeat("a", 8<<20) + `"}`, 413, "payload_too_large", []string{"body"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := s.publish(tc.token, tc.body)
			require.Equal(t, tc.status, r.status, r.body)
			require.Equal(t, tc.code, r.code(tc.path...), r.body)
		})
	}
	c.quiet()
}

// With a bound collection the body stays the body, whatever its fields are.
func TestTheBodyIsNotReadAsARecord(t *testing.T) {
	app := newApp(t, topics.Config{})
	s := serve(t, app)
	secrets := newCollection(t, app, "secrets", &core.TextField{Name: "kind"})
	secret := newRecord(t, app, "secrets", map[string]any{"kind": "text"})
	newCollection(t, app, "rooms", &core.RelationField{Name: "data", CollectionId: secrets.Id, MaxSelect: 1})
	room := newRecord(t, app, "rooms", map[string]any{})
	define(t, app, map[string]any{"pattern": "room/{id}", "collection": "rooms", "publishRule": "@request.body.data.kind = 'text'"})

	publish := func(data string) int {
		return s.publish("", fmt.Sprintf(`{"topic":"room/%s","data":%s}`, room.Id, data)).status
	}
	require.Equal(t, 403, publish(fmt.Sprintf("%q", secret.Id)))
	require.Equal(t, 200, publish(`{"kind":"text"}`))
}

func TestPublishIsRateLimited(t *testing.T) {
	for _, label := range []string{"topics:publish", "/api/topics/publish", "POST /api/topics/publish", "/api/topics/"} {
		t.Run(label, func(t *testing.T) {
			app := newApp(t, topics.Config{})
			s := serve(t, app)
			define(t, app, map[string]any{"pattern": "public", "subscribeRule": "", "publishRule": ""})
			settings := app.Settings()
			settings.RateLimits.Enabled = true
			settings.RateLimits.Rules = []core.RateLimitRule{{Label: label, MaxRequests: 3, Duration: 1000}}
			require.NoError(t, app.Save(settings))

			for range 3 {
				require.Equal(t, 200, s.publish("", `{"topic":"public","data":1}`).status)
			}
			require.Equal(t, 429, s.publish("", `{"topic":"public","data":1}`).status)
			require.Equal(t, 200, s.publish(newSuperuser(t, app), `{"topic":"public","data":1}`).status)
		})
	}

	t.Run("each message counts", func(t *testing.T) {
		app := newApp(t, topics.Config{})
		s := serve(t, app)
		define(t, app, map[string]any{"pattern": "public", "subscribeRule": "", "publishRule": ""})
		app.Settings().RateLimits.Enabled = true
		app.Settings().RateLimits.Rules = []core.RateLimitRule{{Label: "topics:publish", MaxRequests: 3, Duration: 1000}}
		c := s.connect()
		c.mustSubscribe("", "public")

		four, err := json.Marshal(map[string]any{"messages": []any{
			map[string]any{"topic": "public", "data": 1},
			map[string]any{"topic": "public", "data": 2},
			map[string]any{"topic": "public", "data": 3},
			map[string]any{"topic": "public", "data": 4},
		}})
		require.NoError(t, err)
		require.Equal(t, 429, s.publish("", string(four)).status)
		c.quiet()
	})
}
