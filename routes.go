package topics

import (
	"errors"
	"net/http"
	"net/url"

	validation "github.com/pocketbase/ozzo-validation/v4"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/pocketbase/pocketbase/tools/router"
)

// publishLabel is the rate limit label of publishing, for PocketBase's
// settings. Each message counts.
const publishLabel = "topics:publish"

// publishOverhead is the room in a request's body for what is not payload.
const publishOverhead = 4 << 10

func (p *Plugin) bindRoutes(e *core.ServeEvent) {
	limit := rateLimiter(e.Router)
	e.Router.Bind(p.subscribeRequests())

	group := e.Router.Group("/api/topics")
	group.GET("/access", p.handleAccess).Bind(apis.SkipSuccessActivityLog())
	group.GET("/history", p.handleHistory).Bind(apis.SkipSuccessActivityLog())
	group.GET("/presence", p.handlePresence).Bind(apis.SkipSuccessActivityLog())
	group.POST("/presence", p.handleState).
		Bind(apis.BodyLimit(8*maxState+statesOverhead), codedBodyLimit(), apis.SkipSuccessActivityLog())
	group.POST("/publish", func(e *core.RequestEvent) error { return p.handlePublish(e, limit) }).
		Bind(
			apis.BodyLimit(int64(p.config.MaxPublishMessages)*int64(p.config.MaxPayload+publishOverhead)),
			codedBodyLimit(),
			apis.SkipSuccessActivityLog(),
		)
}

// codedBodyLimit gives core's refusal of a large body a code.
func codedBodyLimit() *hook.Handler[*core.RequestEvent] {
	return &hook.Handler[*core.RequestEvent]{
		Id:       "topicsBodyLimit",
		Priority: apis.DefaultBodyLimitMiddlewarePriority - 1, // around it
		Func: func(e *core.RequestEvent) error {
			err := e.Next()
			if errors.Is(err, apis.ErrRequestEntityTooLarge) {
				return router.NewApiError(http.StatusRequestEntityTooLarge, "Request entity too large.", validation.Errors{
					"body": validation.NewError(codePayloadTooLarge, "Is too large, even for as many messages as one request may carry."),
				})
			}
			return err
		},
	}
}

// requestInfo describes the caller of a request to rules, with body as
// @request.body. It is what core makes of the request without its body, which
// core would read by other means than we do.
func requestInfo(e *core.RequestEvent, method string, body map[string]any) (*core.RequestInfo, error) {
	bare := new(core.RequestEvent)
	bare.App = e.App
	bare.Auth = e.Auth
	bare.Request = e.Request.Clone(e.Request.Context())
	bare.Request.Method = method
	bare.Request.Body = http.NoBody
	bare.Request.ContentLength = 0

	info, err := bare.RequestInfo()
	if err != nil {
		return nil, err
	}
	info.Body = body
	return info, nil
}

// infoWith returns the request with another body, for any account.
func infoWith(info *core.RequestInfo, body map[string]any) func(*core.Record) *core.RequestInfo {
	return func(auth *core.Record) *core.RequestInfo {
		own := *info
		own.Body, own.Auth = body, auth
		return &own
	}
}

// rateLimiter returns core's own rate limiting of a label. Core applies the
// rules of a request's path by itself and exports no other way: so its
// middleware is asked about a request whose path is the label.
func rateLimiter(r *router.Router[*core.RequestEvent]) func(e *core.RequestEvent, label string) error {
	var middleware *hook.Handler[*core.RequestEvent]
	for _, m := range r.Middlewares {
		if m.Id == apis.DefaultRateLimitMiddlewareId {
			middleware = m
		}
	}

	return func(e *core.RequestEvent, label string) error {
		if middleware == nil {
			return nil // the app has removed rate limits
		}

		probe := new(core.RequestEvent)
		probe.App = e.App
		probe.Auth = e.Auth
		probe.Response = e.Response
		probe.Request = e.Request.Clone(e.Request.Context())
		probe.Request.URL = &url.URL{Path: label}

		return middleware.Func(probe)
	}
}

// access says what the caller may do with a topic.
type access struct {
	Topic     string  `json:"topic"`
	Subscribe verdict `json:"subscribe"`
	Publish   verdict `json:"publish"`
	Presence  verdict `json:"presence"`
}

type verdict struct {
	Allowed bool   `json:"allowed"`
	Code    string `json:"code"`
	Message string `json:"message"`
}

func verdictOf(d *denial) verdict {
	if d == nil {
		return verdict{Allowed: true}
	}
	return verdict{Code: d.code, Message: d.message}
}

// handleAccess answers with the decisions that subscribing and publishing
// would meet. The topic may be a whole subscription key, options included.
func (p *Plugin) handleAccess(e *core.RequestEvent) error {
	key := e.Request.URL.Query().Get("topic")
	if key == "" {
		return e.BadRequestError("The topic is missing.", validation.Errors{
			"topic": validation.NewError(codeTopicRequired, "Must be the topic's name."),
		})
	}

	topic := topicOf(key)
	answer := access{Topic: topic}

	// of a publication without a body
	info, err := requestInfo(e, http.MethodPost, map[string]any{})
	if err != nil {
		return e.BadRequestError("", err)
	}

	if reservedTopic(e.App, topic) {
		// subscribing is core's to decide
		answer.Subscribe = verdict{Allowed: true, Code: codeReserved, Message: "The topic belongs to PocketBase, whose own rules apply."}
		answer.Publish = verdictOf(denyReserved())
		answer.Presence = verdictOf(denyReserved())
		return e.JSON(http.StatusOK, answer)
	}

	auth := credentialsOf(e.Auth, e.Request)
	subscribe, asksRule := p.decideKey(e.App, key)
	options := parseKeys([]string{key})[key]
	if asksRule {
		read, ok := optionsOf(key, options)
		if ok {
			subscribe = p.decideAs(e.App, auth, actionSubscribe, topic, realtimeInfoOf(options))
		} else {
			subscribe = denyOptions()
		}
		if subscribe == nil {
			subscribe = p.denyIgnored(e.App, topic, options, read.presence)
		}
	}
	publish := p.decideAs(e.App, auth, actionPublish, topic, infoWith(info, info.Body))
	presence := p.decidePresence(e, topic, options)
	for _, failed := range []struct {
		action action
		denial *denial
	}{{actionSubscribe, subscribe}, {actionPublish, publish}, {actionPresence, presence}} {
		if d := failed.denial; d != nil && d.code == codeRuleError {
			p.logDenial(e.App, topic, e.Auth, failed.action, d)
		}
	}

	answer.Subscribe, answer.Publish, answer.Presence = verdictOf(subscribe), verdictOf(publish), verdictOf(presence)
	return e.JSON(http.StatusOK, answer)
}
