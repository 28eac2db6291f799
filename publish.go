package topics

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	validation "github.com/pocketbase/ozzo-validation/v4"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"
)

// publication is one message of a publish request.
type publication struct {
	message Message
	body    map[string]any // @request.body
	field   func(validation.Errors) validation.Errors

	idempotencyKey string
}

// handlePublish sends one message, or many: all of them or, when one is
// refused, none.
func (p *Plugin) handlePublish(e *core.RequestEvent, limit func(*core.RequestEvent, string) error) error {
	publications, many, err := p.readPublications(e)
	if err != nil {
		return err
	}

	auth, err := refreshAuth(e)
	if err != nil {
		return err
	}
	info, err := requestInfo(e, e.Request.Method, nil)
	if err != nil {
		return e.BadRequestError("", err)
	}

	for _, pub := range publications {
		if err := limit(e, publishLabel); err != nil {
			return err
		}
		if d := p.decidePublish(e.App, auth, pub, info); d != nil {
			p.logDenial(e.App, pub.message.Topic, e.Auth, actionPublish, d)
			faults := pub.field(validation.Errors{"topic": d.fieldError()})
			return router.NewApiError(d.status(), d.message, faults)
		}
	}

	if !p.mayBegin(e, publications) {
		return publishFault(e, publications[0], errTooManyTopics)
	}
	for _, pub := range publications {
		if err := p.checkRepeat(e, pub); err != nil {
			return publishFault(e, pub, err)
		}
	}
	answers := make([]published, len(publications))
	for i, pub := range publications {
		if answers[i].ID, err = p.publishOnce(e, pub); err != nil {
			return publishFault(e, pub, err)
		}
	}

	if !many {
		return e.JSON(http.StatusOK, answers[0])
	}
	return e.JSON(http.StatusOK, map[string]any{"messages": answers})
}

// mayBegin reports whether the sender may begin the topics that have no history
// yet.
func (p *Plugin) mayBegin(e *core.RequestEvent, publications []publication) bool {
	topics := make([]string, len(publications))
	for i, pub := range publications {
		topics[i] = pub.message.Topic
	}
	begins := p.history.begins(topics)
	return begins == 0 || p.history.mayBegin(senderOf(e), begins)
}

func publishFault(e *core.RequestEvent, pub publication, err error) error {
	switch {
	case errors.Is(err, errTooManyTopics):
		d := denyTooManyTopics()
		return router.NewApiError(d.status(), d.message, pub.field(validation.Errors{"topic": d.fieldError()}))
	case errors.Is(err, errRepeatInterrupted):
		return router.NewApiError(http.StatusServiceUnavailable, "Failed to publish.", pub.field(validation.Errors{
			"idempotencyKey": validation.NewError(codeKeyBusy, "Another request with this key is still being sent. Send this one again."),
		}))
	case errors.Is(err, errSenderBehind):
		return router.NewTooManyRequestsError("Failed to publish.", pub.field(validation.Errors{
			"topic": validation.NewError(codeSenderBehind, "Too many of your messages wait to be stored. Try again after a pause."),
		}))
	case errors.Is(err, errTooMuchHistory):
		d := denyTooMuchHistory()
		return router.NewApiError(d.status(), d.message, pub.field(validation.Errors{"topic": d.fieldError()}))
	case errors.Is(err, errRepeatOther):
		return router.NewApiError(http.StatusConflict, "Failed to publish.", pub.field(validation.Errors{
			"idempotencyKey": validation.NewError(codeKeyReused, "Was used for another message. Take a new key for each message."),
		}))
	case errors.Is(err, ErrUnavailable):
		return router.NewApiError(http.StatusServiceUnavailable, "Failed to publish.", pub.field(validation.Errors{
			"topic": validation.NewError(codeUnavailable, "The topic rules cannot be read at this moment. Try again."),
		}))
	default:
		return e.InternalServerError("Failed to publish.", err)
	}
}

// published is the answer for one message. Its id is empty if the topic keeps
// no history, or if the message waits for the end of a transaction.
type published struct {
	ID string `json:"id"`
}

// publishOnce sends a message, unless it was sent with the same idempotency
// key before.
func (p *Plugin) publishOnce(e *core.RequestEvent, pub publication) (string, error) {
	m := pub.message
	m.Time = time.Now()
	m.owner = senderOf(e)
	if e.Auth != nil {
		m.Sender = &Sender{ID: e.Auth.Id, Collection: e.Auth.Collection().Name}
	}
	if pub.idempotencyKey == "" {
		return p.send(e.App, m)
	}

	m.repeat = pub.repeatKey(e)
	what := contentOf(m)
	return p.repeats.once(e.Request.Context(), ownerOf(e), m.repeat, what, func() (string, content, error) {
		// before a restart, or longer ago than keys are remembered
		kept, err := p.history.sentWith(e.Request.Context(), m.Topic, m.repeat)
		if err != nil {
			return "", what, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		if kept != nil {
			return kept.id(), contentOf(kept.message), nil
		}
		id, err := p.send(e.App, m)
		return id, what, err
	})
}

func (p *Plugin) decidePublish(app core.App, auth credentials, pub publication, info *core.RequestInfo) *denial {
	if reservedTopic(app, pub.message.Topic) {
		return denyReserved()
	}
	return p.decideAs(app, auth, actionPublish, pub.message.Topic, infoWith(info, pub.body))
}

// readPublications reads the body as {topic, data, …} or as
// {messages: [...]} of such objects.
func (p *Plugin) readPublications(e *core.RequestEvent) (publications []publication, many bool, err error) {
	raw, err := io.ReadAll(e.Request.Body)
	if err != nil {
		return nil, false, err // of the body limit
	}

	body, err := readObject(raw)
	if err != nil {
		return nil, false, e.BadRequestError("The body must be a JSON object.", validation.Errors{
			"body": validation.NewError(codeBodyInvalid, "Must be a JSON object with topic and data, or with messages."),
		})
	}

	// once for the whole request, and only if there are any for its parts
	_, duplicates := duplicateKey(raw)

	list, many := body["messages"]
	if !many {
		pub, faults := p.readPublication(raw)
		if faults != nil {
			return nil, false, e.BadRequestError("Failed to publish.", faults)
		}
		if duplicates {
			return nil, false, e.BadRequestError("Failed to publish.", validation.Errors{"body": duplicateFault()})
		}
		pub.field = func(faults validation.Errors) validation.Errors { return faults }
		return []publication{pub}, false, nil
	}

	var items []json.RawMessage
	if err := json.Unmarshal(list, &items); err != nil || len(items) == 0 {
		return nil, true, e.BadRequestError("Failed to publish.", validation.Errors{
			"messages": validation.NewError(codeMessagesInvalid, "Must be an array of at least one message."),
		})
	}
	if limit := p.config.MaxPublishMessages; len(items) > limit {
		return nil, true, e.BadRequestError("Failed to publish.", validation.Errors{
			"messages": validation.NewError(codeTooManyMessages, fmt.Sprintf("Must not have more than %d messages.", limit)),
		})
	}

	for i, item := range items {
		at := func(faults validation.Errors) validation.Errors {
			return validation.Errors{"messages": validation.Errors{strconv.Itoa(i): faults}}
		}
		pub, faults := p.readPublication(item)
		if duplicates && faults == nil {
			if _, here := duplicateKey(item); here {
				faults = validation.Errors{"body": duplicateFault()}
			}
		}
		if faults != nil {
			return nil, true, e.BadRequestError("Failed to publish.", at(faults))
		}
		pub.field = at
		publications = append(publications, pub)
	}
	if duplicates {
		return nil, true, e.BadRequestError("Failed to publish.", validation.Errors{"body": duplicateFault()})
	}
	return publications, true, nil
}

// readObject reads a JSON object by its exact keys. (A struct would also take
// "Topic" for "topic", and then the rule would see another topic than the one
// that is published to.)
func readObject(raw []byte) (map[string]json.RawMessage, error) {
	if !utf8.Valid(raw) {
		return nil, errors.New("not valid UTF-8")
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(raw, &object); err != nil {
		return nil, err
	}
	if object == nil {
		return nil, errors.New("null")
	}
	return object, nil
}

func (p *Plugin) readPublication(raw json.RawMessage) (publication, validation.Errors) {
	fields, err := readObject(raw)
	if err != nil {
		return publication{}, validation.Errors{"body": validation.NewError(codeBodyInvalid, "Must be a JSON object with topic and data.")}
	}

	if fault := p.checkSizes(fields); fault != nil {
		return publication{}, fault
	}
	pub := publication{body: make(map[string]any, len(fields))}
	for name, value := range fields {
		var v any
		if err := json.Unmarshal(value, &v); err != nil {
			return publication{}, validation.Errors{"body": validation.NewError(codeBodyInvalid, "Has a number that is out of range.")}
		}
		pub.body[name] = v
	}

	faults := validation.Errors{}

	topic, isText := pub.body["topic"].(string)
	if !isText || topic == "" {
		faults["topic"] = validation.NewError(codeTopicRequired, "Must be the topic's name.")
	}
	pub.message.Topic = topic

	if except, given := pub.body["except"]; given {
		if pub.message.Except, isText = except.(string); !isText || !validExcept(pub.message.Except) {
			faults["except"] = validation.NewError(codeExceptInvalid, fmt.Sprintf("Must be the id of a realtime client: a text of at most %d bytes.", maxExcept))
		}
	}

	if event, given := pub.body["event"]; given {
		if pub.message.Event, isText = event.(string); !isText || !validEvent(pub.message.Event) {
			faults["event"] = validation.NewError(codeEventInvalid, fmt.Sprintf("Must be a text of at most %d bytes.", maxEvent))
		}
	}

	if key, given := pub.body["idempotencyKey"]; given {
		if pub.idempotencyKey, isText = key.(string); !isText || pub.idempotencyKey == "" || len(pub.idempotencyKey) > maxIdempotencyKey {
			faults["idempotencyKey"] = validation.NewError(codeKeyInvalid, fmt.Sprintf("Must be a text of 1 to %d bytes.", maxIdempotencyKey))
		}
	}

	if data, given := fields["data"]; !given {
		faults["data"] = validation.NewError(codePayloadRequired, "Must be what is sent: any JSON value.")
	} else if pub.message.Data, err = compact(data); err == nil {
		err = p.checkPayload(pub.message.Data)
		if err != nil {
			faults["data"] = p.payloadFault(err)
		}
	} else {
		faults["data"] = p.payloadFault(err)
	}

	if len(faults) > 0 {
		return publication{}, faults
	}
	pub.keepOnly()
	return pub, nil
}

// longTexts are the faults of texts that are longer than a whole request may be
// beside data.
var longTexts = map[string]validation.Error{
	"topic":          denyMalformed().fieldError(),
	"event":          validation.NewError(codeEventInvalid, fmt.Sprintf("Must be a text of at most %d bytes.", maxEvent)),
	"except":         validation.NewError(codeExceptInvalid, fmt.Sprintf("Must be the id of a realtime client: a text of at most %d bytes.", maxExcept)),
	"idempotencyKey": validation.NewError(codeKeyInvalid, fmt.Sprintf("Must be a text of 1 to %d bytes.", maxIdempotencyKey)),
}

// checkSizes looks at the sizes before anything is parsed: what is parsed takes
// many times as much memory as its text.
func (p *Plugin) checkSizes(fields map[string]json.RawMessage) validation.Errors {
	faults := validation.Errors{}
	rest := 0
	for name, value := range fields {
		fault, isText := longTexts[name]
		switch {
		case name == "data":
		case !isText:
			rest += len(name) + len(value)
		case len(value) > publishOverhead:
			faults[name] = fault
		}
	}
	if len(faults) > 0 {
		return faults
	}
	if rest > publishOverhead {
		return validation.Errors{"body": validation.NewError(codePayloadTooLarge, fmt.Sprintf("Must not have more than %d bytes beside data.", publishOverhead))}
	}
	data, err := compact(fields["data"])
	if err == nil && len(data) > p.config.MaxPayload {
		return validation.Errors{"data": p.payloadFault(ErrPayloadTooLarge)}
	}
	return nil // what is no JSON is said later
}

// repeatKey is that of the message's idempotency key, and the caller.
func (pub *publication) repeatKey(e *core.RequestEvent) repeatKey {
	collection, sender := "", "" // all guests
	if e.Auth != nil {
		collection, sender = e.Auth.Collection().Id, e.Auth.Id
	}
	return newRepeatKey(collection, sender, pub.message.Topic, pub.idempotencyKey)
}

// checkRepeat returns [errRepeatOther] if the message's idempotency key is known
// to be of another one: before any message of a request is sent.
func (p *Plugin) checkRepeat(e *core.RequestEvent, pub publication) error {
	if pub.idempotencyKey == "" {
		return nil
	}
	key, what := pub.repeatKey(e), contentOf(pub.message)
	if sent, known := p.repeats.sentWith(key); known && sent != what {
		return errRepeatOther
	}
	kept, err := p.history.sentWith(e.Request.Context(), pub.message.Topic, key)
	if err == nil && kept != nil && contentOf(kept.message) != what {
		return errRepeatOther
	}
	return nil // what could not be read is said when the message is sent
}

// keepOnly makes what is kept of a message independent of the request's text.
func (pub *publication) keepOnly() {
	m := &pub.message
	m.Topic, m.Event, m.Except = strings.Clone(m.Topic), strings.Clone(m.Event), strings.Clone(m.Except)
	pub.idempotencyKey = strings.Clone(pub.idempotencyKey)
}

// compact makes one line of JSON, in the form of [marshalLine], without changing
// its numbers or key order. It takes little more memory than its length says,
// and none of raw.
func compact(raw []byte) ([]byte, error) {
	var line bytes.Buffer
	line.Grow(len(raw))
	if err := json.Compact(&line, raw); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidPayload, err)
	}
	compacted := canonical(line.Bytes())
	if cap(compacted)-len(compacted) > len(compacted)/8 {
		compacted = bytes.Clone(compacted) // the rest would be kept as well
	}
	return compacted, nil
}

func (p *Plugin) payloadFault(err error) validation.Error {
	switch {
	case errors.Is(err, ErrPayloadTooLarge):
		return validation.NewError(codePayloadTooLarge, fmt.Sprintf("Must not be longer than %d bytes of JSON.", p.config.MaxPayload))
	case errors.Is(err, ErrReservedPayload):
		return validation.NewError(codePayloadReserved, `May not have the top-level key "@topics".`)
	case errors.Is(err, ErrDuplicateKey):
		return duplicateFault()
	default:
		return validation.NewError(codePayloadInvalid, "Must be valid JSON.")
	}
}

func duplicateFault() validation.Error {
	return validation.NewError(codeDuplicateKey, "Has an object with the same key twice.")
}
