package topics

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	validation "github.com/pocketbase/ozzo-validation/v4"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"
)

const (
	historyLimit    = 50  // messages of a page, unless told
	maxHistoryLimit = 500 // at most
)

// HistoryOptions say which messages [History] returns.
type HistoryOptions struct {
	// Since is the id of a message: those after it, oldest first, are returned.
	Since string

	// Before is the id of a message: those right before it are returned, oldest
	// first. Without Since and Before it is the newest ones.
	Before string

	// Limit is how many. Default 50, at most 500.
	Limit int
}

// HistoryPage is a part of a topic's history.
type HistoryPage struct {
	// Messages are in their order, and IDs are theirs.
	Messages []Message
	IDs      []string

	// Recovered is false if messages after Since, or right before Before, are
	// not available any more.
	Recovered bool

	// Last is the id of the topic's newest message, also if that is not kept
	// any more. It is empty for a topic without any.
	Last string
}

// History returns messages that a topic keeps. No rule is asked. It returns,
// wrapped, [ErrNotRegistered], [ErrClosed], [ErrMalformedTopic],
// [ErrInvalidPosition], [ErrNoHistory] or [ErrUnavailable].
func History(app core.App, topic string, options HistoryOptions) (HistoryPage, error) {
	p := From(app)
	if p == nil {
		return HistoryPage{}, ErrNotRegistered
	}
	return p.History(app, topic, options)
}

// History is [History] on an app whose plugin is at hand.
func (p *Plugin) History(_ core.App, topic string, options HistoryOptions) (HistoryPage, error) {
	page, entries, err := p.page(topic, options)
	for _, e := range entries {
		page.Messages = append(page.Messages, e.message)
		page.IDs = append(page.IDs, e.id())
	}
	return page, err
}

func (p *Plugin) page(topic string, options HistoryOptions) (HistoryPage, []*entry, error) {
	if p.closed.Load() {
		return HistoryPage{}, nil, ErrClosed
	}
	if !validTopic(topic) {
		return HistoryPage{}, nil, fmt.Errorf("%w: %q", ErrMalformedTopic, topic)
	}
	if takenName(topic) {
		return HistoryPage{}, nil, fmt.Errorf("%w: %q", ErrReservedTopic, topic)
	}
	limit := options.Limit
	if limit == 0 {
		limit = historyLimit
	}
	if limit < 1 || limit > maxHistoryLimit {
		return HistoryPage{}, nil, fmt.Errorf("%w: the limit must be from 1 to %d", ErrInvalidPosition, maxHistoryLimit)
	}
	r, err := p.retentionOf(topic)
	if err != nil {
		return HistoryPage{}, nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if !r.keeps() {
		return HistoryPage{}, nil, ErrNoHistory
	}
	if err := options.validate(); err != nil {
		return HistoryPage{}, nil, err
	}
	for range 10 { // it may be evicted again before it is looked at
		if err := p.history.load(p.life, topic); err != nil {
			return HistoryPage{}, nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		if page, entries, ok := p.hub.page(topic, options, limit, r); ok {
			return page, entries, nil
		}
	}
	return HistoryPage{}, nil, ErrUnavailable
}

func (o HistoryOptions) validate() error {
	if o.Since != "" && o.Before != "" {
		return fmt.Errorf("%w: since and before exclude each other", ErrInvalidPosition)
	}
	for _, id := range []string{o.Since, o.Before} {
		if _, _, ok := parseMessageID(id); !ok && id != "" {
			return fmt.Errorf("%w: %q", ErrInvalidPosition, clip(id))
		}
	}
	return nil
}

// page reports false if the topic's log has to be read from the disk first.
func (h *hub) page(topic string, options HistoryOptions, limit int, r retention) (page HistoryPage, entries []*entry, ok bool) {
	shard := h.shard(topic)
	shard.mu.Lock()
	defer shard.mu.Unlock()

	log := shard.logs[topic]
	if log == nil {
		return HistoryPage{Recovered: options.Since == "" && options.Before == ""}, nil, true
	}
	if !log.whole() {
		return HistoryPage{}, nil, false
	}
	h.history.apply(shard, log, r, time.Now())
	page, entries = log.page(options, limit)
	return page, entries, true
}

// historyAnswer is a page as HTTP clients see it.
type historyAnswer struct {
	Topic     string     `json:"topic"`
	Messages  []envelope `json:"messages"`
	Recovered bool       `json:"recovered"`
	Last      string     `json:"last"`
}

func newHistoryAnswer(topic string, page HistoryPage, entries []*entry) historyAnswer {
	answer := historyAnswer{Topic: topic, Messages: make([]envelope, len(entries)), Recovered: page.Recovered, Last: page.Last}
	for i, entry := range entries {
		answer.Messages[i] = envelopeOf(entry.message, entry.id())
	}
	return answer
}

func (p *Plugin) historyFault(e *core.RequestEvent, err error) error {
	switch {
	case errors.Is(err, ErrNoHistory):
		return e.BadRequestError("Failed to read the history.", validation.Errors{
			"topic": validation.NewError(codeNoHistory, "This topic keeps no history."),
		})
	case errors.Is(err, ErrInvalidPosition):
		field := "since"
		if !e.Request.URL.Query().Has(field) {
			field = "before"
		}
		return e.BadRequestError("Failed to read the history.", validation.Errors{
			field: validation.NewError(codeSinceInvalid, "Must be the id of a message, and since and before exclude each other."),
		})
	case errors.Is(err, ErrUnavailable):
		p.logHistoryError(e.Request.URL.Query().Get("topic"), err)
		return router.NewApiError(http.StatusServiceUnavailable, "Failed to read the history.", validation.Errors{
			"topic": validation.NewError(codeUnavailable, "The history cannot be read at this moment. Try again."),
		})
	default:
		return e.InternalServerError("Failed to read the history.", err)
	}
}

// handleHistory answers whoever may subscribe.
func (p *Plugin) handleHistory(e *core.RequestEvent) error {
	query := e.Request.URL.Query()
	topic := query.Get("topic")
	if topic == "" {
		return e.BadRequestError("The topic is missing.", validation.Errors{
			"topic": validation.NewError(codeTopicRequired, "Must be the topic's name."),
		})
	}
	if reservedTopic(e.App, topic) {
		d := denyReserved()
		return e.Error(d.status(), d.message, validation.Errors{"topic": d.fieldError()})
	}
	if d := p.decideAs(e.App, credentialsOf(e.Auth, e.Request), actionSubscribe, topic, realtimeInfoOf(parseKeys([]string{topic})[topic])); d != nil {
		p.logDenial(e.App, topic, e.Auth, actionSubscribe, d)
		return e.Error(d.status(), d.message, validation.Errors{"topic": d.fieldError()})
	}

	options := HistoryOptions{Since: query.Get("since"), Before: query.Get("before")}
	if text := query.Get("limit"); text != "" {
		limit, err := strconv.Atoi(text)
		if err != nil || limit < 1 || limit > maxHistoryLimit {
			return e.BadRequestError("Failed to read the history.", validation.Errors{
				"limit": validation.NewError(codeLimitInvalid, fmt.Sprintf("Must be a number from 1 to %d.", maxHistoryLimit)),
			})
		}
		options.Limit = limit
	}

	page, entries, err := p.page(topic, options)
	if err != nil {
		return p.historyFault(e, err)
	}
	return writeLine(e, newHistoryAnswer(topic, page, entries))
}
