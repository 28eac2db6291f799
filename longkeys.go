package topics

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/pocketbase/pocketbase/tools/router"
)

const (
	// maxKey is the longest key that core accepts, in bytes. For a longer one it
	// refuses the whole request, which the SDKs repeat for ever.
	maxKey = 2500

	// maxSubscribeBody is the largest body of a subscribe request that is looked
	// at. All keys that core accepts take 2.5 MB.
	maxSubscribeBody = 4 << 20

	// longKeysKey is where a subscribe request keeps the keys that were taken
	// out of its body.
	longKeysKey = "topicsLongKeys"

	realtimePath = "/api/realtime"
)

// subscribeRequests prepares a subscribe request before core reads it.
func (p *Plugin) subscribeRequests() *hook.Handler[*core.RequestEvent] {
	return &hook.Handler[*core.RequestEvent]{
		Id:       "topicsSubscribeRequests",
		Priority: apis.DefaultBodyLimitMiddlewarePriority + 1,
		Func: func(e *core.RequestEvent) error {
			if e.Request.Method != http.MethodPost || e.Request.URL.Path != realtimePath {
				return e.Next()
			}
			body, err := p.takeLongKeys(e)
			if err != nil {
				return e.BadRequestError("", err) // as core, which could not read it either
			}
			if body != nil {
				defer body.Close()
			}
			return e.Next()
		},
	}
}

// takeLongKeys takes the keys that core would refuse the request for out of its
// body, so that they alone are refused. Keys of PocketBase's own topics stay, and
// those without options, which no topic has.
// It returns the new body, if there is one, for the caller to close.
func (p *Plugin) takeLongKeys(e *core.RequestEvent) (body io.Closer, err error) {
	length := e.Request.ContentLength
	if length >= 0 && length <= maxKey || !strings.HasPrefix(e.Request.Header.Get("Content-Type"), "application/json") {
		return nil, nil
	}
	if length > maxSubscribeBody {
		return nil, nil
	}
	raw, err := io.ReadAll(io.LimitReader(e.Request.Body, maxSubscribeBody+1))
	if err != nil {
		return nil, err
	}

	read := io.Reader(bytes.NewReader(raw))
	if len(raw) > maxSubscribeBody {
		read = io.MultiReader(read, e.Request.Body)
	} else if short, long := splitKeys(raw, func(key string) bool {
		return strings.Contains(key, "?") && !reservedTopic(e.App, topicOf(key))
	}); len(long) > 0 {
		read = bytes.NewReader(short)
		e.Request.ContentLength = int64(len(short))
		e.Set(longKeysKey, p.tellable(e, long))
	}
	reread := &router.RereadableReadCloser{ReadCloser: io.NopCloser(read)}
	e.Request.Body = reread
	return reread, nil
}

// splitKeys returns the body without the too long keys of which ours is true,
// and those. It returns none where the body is not as the SDKs send it, which is
// core's to judge.
func splitKeys(body []byte, ours func(key string) bool) (short []byte, long []string) {
	const field = "subscriptions"

	var fields map[string]json.RawMessage
	if json.NewDecoder(bytes.NewReader(body)).Decode(&fields) != nil {
		return nil, nil
	}
	for name := range fields {
		if name != field && strings.EqualFold(name, field) {
			return nil, nil // core may take it for the same
		}
	}
	var keys []string
	if json.Unmarshal(fields[field], &keys) != nil {
		return nil, nil
	}

	kept := make([]string, 0, len(keys))
	for _, key := range keys {
		if len(key) > maxKey && ours(key) {
			long = append(long, key)
		} else {
			kept = append(kept, key)
		}
	}
	if len(long) == 0 {
		return nil, nil
	}
	var err error
	if fields[field], err = json.Marshal(kept); err == nil {
		short, err = json.Marshal(fields)
	}
	if err != nil {
		panic(err) // texts, and JSON that was parsed, always marshal
	}
	return short, long
}

// tellable returns those of the keys whose denials have room in a client's
// queue, and logs that of the others.
func (p *Plugin) tellable(e *core.RequestEvent, long []string) (keys []string) {
	room := p.config.QueueBytes / 4
	for _, key := range long {
		if len(key) <= room {
			room -= len(key)
			keys = append(keys, key)
			continue
		}
		p.counters.subscriptionsRefused.Add(1)
		p.logDenial(e.App, topicOf(key), e.Auth, actionSubscribe, denyLongKey())
	}
	return keys
}

// longKeys returns what was taken out of a subscribe request.
func longKeys(e *core.RequestEvent) []string {
	keys, _ := e.Get(longKeysKey).([]string)
	return keys
}
