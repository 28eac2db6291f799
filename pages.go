package topics

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	validation "github.com/pocketbase/ozzo-validation/v4"
	"github.com/pocketbase/pocketbase/core"
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
// [ErrInvalidPosition] or [ErrNoHistory], or an error of the database.
func History(app core.App, topic string, options HistoryOptions) (HistoryPage, error) {
	p := From(app)
	if p == nil {
		return HistoryPage{}, ErrNotRegistered
	}
	return p.History(app, topic, options)
}

// History is [History] on an app whose plugin is at hand.
func (p *Plugin) History(app core.App, topic string, options HistoryOptions) (HistoryPage, error) {
	page, entries, err := p.page(p.app(app), topic, options)
	for _, e := range entries {
		page.Messages = append(page.Messages, e.message)
		page.IDs = append(page.IDs, e.id())
	}
	return page, err
}

func (p *Plugin) page(app core.App, topic string, options HistoryOptions) (HistoryPage, []*entry, error) {
	if p.closed.Load() {
		return HistoryPage{}, nil, ErrClosed
	}
	if !validTopic(topic) {
		return HistoryPage{}, nil, fmt.Errorf("%w: %q", ErrMalformedTopic, topic)
	}
	limit := options.Limit
	if limit == 0 {
		limit = historyLimit
	}
	if limit < 1 || limit > maxHistoryLimit {
		return HistoryPage{}, nil, fmt.Errorf("%w: the limit must be from 1 to %d", ErrInvalidPosition, maxHistoryLimit)
	}
	r := p.retentionOf(topic)
	if !r.keeps() {
		return HistoryPage{}, nil, ErrNoHistory
	}
	if err := p.history.open(app, topic, r); err != nil {
		return HistoryPage{}, nil, err
	}

	shard := p.hub.shard(topic)
	shard.mu.Lock()
	defer shard.mu.Unlock()

	log := shard.logs[topic]
	if log == nil {
		return HistoryPage{Recovered: options.Since == "" && options.Before == ""}, nil, nil
	}
	log.prune(r, time.Now())
	return log.page(options, limit)
}

// page expects the shard's lock to be held.
func (l *topicLog) page(options HistoryOptions, limit int) (page HistoryPage, entries []*entry, err error) {
	if l.last > 0 {
		page.Last = messageID(l.epoch, l.last)
		if n := len(l.entries); n > 0 {
			page.Last = l.entries[n-1].id()
		}
	}

	switch {
	case options.Since != "" && options.Before != "":
		return page, nil, fmt.Errorf("%w: since and before exclude each other", ErrInvalidPosition)

	case options.Since != "":
		epoch, offset, ok := parseMessageID(options.Since)
		if !ok {
			return page, nil, fmt.Errorf("%w: %q", ErrInvalidPosition, clip(options.Since))
		}
		// messages may be missing at the end of another epoch
		page.Recovered = epoch == l.epoch && offset+1 >= l.first() && offset <= l.last
		entries = l.after(epoch, offset)
		entries = entries[:min(len(entries), limit)]

	case options.Before != "":
		epoch, offset, ok := parseMessageID(options.Before)
		if !ok {
			return page, nil, fmt.Errorf("%w: %q", ErrInvalidPosition, clip(options.Before))
		}
		after := l.after(epoch, max(offset, 1)-1)
		page.Recovered = len(after) > 0 && after[0].epoch == epoch && after[0].offset == offset
		if page.Recovered {
			entries = l.entries[:len(l.entries)-len(after)]
			entries = entries[max(0, len(entries)-limit):]
		}

	default:
		page.Recovered = true
		entries = l.entries[max(0, len(l.entries)-limit):]
	}
	return page, slices.Clone(entries), nil
}

// historyAnswer is a page as HTTP clients see it.
type historyAnswer struct {
	Topic     string     `json:"topic"`
	Messages  []envelope `json:"messages"`
	Recovered bool       `json:"recovered"`
	Last      string     `json:"last"`
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
	if d := p.decide(e.App, actionSubscribe, topic, askerOf(realtimeInfo(parseKeys([]string{topic})[topic], e.Auth))); d != nil {
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

	page, entries, err := p.page(e.App, topic, options)
	if err != nil {
		return p.historyFault(e, err)
	}
	answer := historyAnswer{Topic: topic, Messages: make([]envelope, len(entries)), Recovered: page.Recovered, Last: page.Last}
	for i, entry := range entries {
		answer.Messages[i] = envelopeOf(entry.message, entry.id())
	}
	return e.JSON(http.StatusOK, answer)
}
