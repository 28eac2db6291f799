package topics_test

import (
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

// heap is the memory that is in use.
func heap() int {
	var stats runtime.MemStats
	for range 3 { // pools keep things for one more collection
		runtime.GC()
	}
	runtime.ReadMemStats(&stats)
	return int(stats.HeapAlloc)
}

// What the plugin keeps of a request is as long as what it stands for: no name,
// no id and no message keeps the text of its request in memory.
func TestLittleIsKeptOfARequest(t *testing.T) {
	const (
		mega  = 1 << 20
		noise = mega // of the test itself, PocketBase and the Go runtime
	)
	long := func(n int) string { return strings.Repeat("x", n) }

	for name, tc := range map[string]struct {
		do    func(t *testing.T, s *server, c *stream, i int)
		times int
		keeps int // that is meant to
	}{
		"refused publishes": {do: func(t *testing.T, s *server, _ *stream, i int) {
			r := s.publish("", fmt.Sprintf(`{"topic":"%d%s","data":1}`, i, long(3*mega)))
			require.Equal(t, 400, r.status)
		}, times: 20},
		"refused subscriptions": {do: func(t *testing.T, _ *server, c *stream, i int) {
			form(t, c, fmt.Sprintf("refused/%d", i), 2*mega)
		}, times: 20},
		"subscriptions": {do: func(t *testing.T, _ *server, c *stream, i int) {
			form(t, c, fmt.Sprintf("history/%d", i), 2*mega)
		}, times: 20},
		"subscriptions that options follow": {do: func(_ *testing.T, _ *server, c *stream, i int) {
			for j := range 20 {
				keys := make([]string, 250)
				for n := range keys {
					keys[n] = fmt.Sprintf("history/%d-%d-%d?%s", i, j, n, long(2400))
				}
				c.mustSubscribe("", keys...)
			}
			c.mustSubscribe("")
		}, times: 3, keeps: 15_000 * 250},
		"refused names in the query": {do: func(t *testing.T, s *server, _ *stream, i int) {
			r := s.request(http.MethodGet, fmt.Sprintf("/api/topics/presence?topic=%d%s", i, long(mega/2)), "", "")
			require.Equal(t, 400, r.status)
			r = s.request(http.MethodGet, fmt.Sprintf("/api/topics/history?topic=%d%s", i, long(mega/2)), "", "")
			require.Equal(t, 400, r.status)
		}, times: 40},
		"messages with spaces": {do: func(t *testing.T, s *server, _ *stream, i int) {
			r := s.publish("", fmt.Sprintf(`{"topic":"history/%d","data":[1%s]}`, i, strings.Repeat(" ", 3*mega)))
			require.Equal(t, 200, r.status, r.body)
		}, times: 20},
		"messages that leave out what is no client": {do: func(t *testing.T, s *server, _ *stream, i int) {
			r := s.publish("", fmt.Sprintf(`{"topic":"history/%d","data":1,"except":"%s"}`, i, long(3*mega)))
			require.Equal(t, "except_invalid", r.code("except"))
		}, times: 20},
		"messages of the app's own code": {do: func(t *testing.T, s *server, _ *stream, i int) {
			body := long(3*mega) + "/history"
			topic := body[3*mega+1:] + fmt.Sprint("/", i)
			require.NoError(t, topics.Notify(s.app, topic, 1, topics.Event(body[:10]), topics.Except(body[:20])))
		}, times: 20},
	} {
		t.Run(name, func(t *testing.T) {
			app := newApp(t, topics.Config{})
			s := serve(t, app)
			define(t, app, map[string]any{"pattern": "history/{x}", "subscribeRule": "", "publishRule": "", "history": 10})
			define(t, app, map[string]any{"pattern": "refused/{x}"})
			streams := make([]*stream, tc.times+1)
			for i := range streams {
				streams[i] = s.connect()
			}
			tc.do(t, s, streams[tc.times], tc.times)

			before := heap()
			for i := range tc.times {
				tc.do(t, s, streams[i], i)
			}
			s.http.CloseIdleConnections()
			kept := heap() - before
			t.Logf("%d kB", kept>>10)
			require.Less(t, kept, tc.keeps+noise)
		})
	}
}

// form subscribes a connection as an HTML form would.
func form(t *testing.T, c *stream, key string, padding int) {
	t.Helper()

	// what is not escaped is read as a part of the body
	body := "clientId=" + c.id + "&subscriptions=" + key + "&z=" + strings.Repeat("x", padding)
	res, err := c.s.http.Post(c.s.url+"/api/realtime", "application/x-www-form-urlencoded", strings.NewReader(body))
	require.NoError(t, err)
	defer res.Body.Close()
	require.Equal(t, http.StatusNoContent, res.StatusCode)
}
