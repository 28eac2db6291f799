package topics

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
)

// controlKey is the top-level key that marks the plugin's own messages.
const controlKey = "@topics"

// NotifyOption changes how a message is sent: see [Event] and [Except]. The zero
// value changes nothing.
type NotifyOption struct {
	set func(*notifyOptions)
}

// notifyOptions are what options may set. Topic and data are not among them:
// they were checked before.
type notifyOptions struct {
	event  string
	except string
}

// Event names the message. Subscribers with the envelope option see it. It has
// at most 64 bytes of UTF-8: Notify returns [ErrInvalidEvent] for others.
func Event(name string) NotifyOption {
	return NotifyOption{func(o *notifyOptions) { o.event = name }}
}

const maxEvent = 64

// Except leaves one client out: usually the connection of whoever caused the
// message (pb.realtime.clientId in the JS SDK). An empty id leaves nobody out.
// It has at most 255 bytes of UTF-8: Notify returns [ErrInvalidExcept] for
// others.
func Except(clientID string) NotifyOption {
	return NotifyOption{func(o *notifyOptions) { o.except = clientID }}
}

// maxExcept is what PocketBase accepts as the id of a client, in bytes.
const maxExcept = 255

// Notify sends data to all subscribers of topic. They receive the JSON that
// [json.Marshal] makes of it, with <, > and & as they are and with U+2028,
// U+2029 and U+0085 escaped.
//
// A record in the data, at any depth and in the expand of others, is sent as a
// guest may see it: without hidden fields, without an email that emailVisibility
// does not show, whatever flags the record has. Custom data is sent where
// record.WithCustomData(true) was called, and what record.Hide hides is not. To
// send more, send record.PublicExport() or a map. A record that cannot be
// replaced, inside of a type with its own MarshalJSON, is an error.
//
// No rule is asked: it is the server that speaks. Inside a transaction (app is
// a transaction's app) the message is sent after the commit, and never after a
// rollback. Notify does not wait for any client.
//
// It returns, wrapped, [ErrNotRegistered], [ErrClosed], [ErrMalformedTopic],
// [ErrReservedTopic], [ErrInvalidPayload], [ErrPayloadTooLarge],
// [ErrReservedPayload], [ErrDuplicateKey], [ErrInvalidEvent], [ErrInvalidExcept]
// or [ErrTransactionOver]; in each case nothing is sent.
func Notify(app core.App, topic string, data any, opts ...NotifyOption) error {
	p := From(app)
	if p == nil {
		return ErrNotRegistered
	}
	return p.Notify(app, topic, data, opts...)
}

// Notify is [Notify] on an app whose plugin is at hand.
func (p *Plugin) Notify(app core.App, topic string, data any, opts ...NotifyOption) error {
	if p.closed.Load() {
		return ErrClosed
	}
	if !validTopic(topic) {
		return fmt.Errorf("%w: %q", ErrMalformedTopic, clip(topic))
	}
	if takenName(topic) || reservedTopic(app, topic) {
		return fmt.Errorf("%w: %q", ErrReservedTopic, topic)
	}

	data, err := withGuestRecords(data)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalidPayload, err)
	}
	raw, err := marshalLine(data)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalidPayload, err)
	}
	if err := p.checkPayload(raw); err != nil {
		return err
	}

	var o notifyOptions
	for _, opt := range opts {
		if opt.set != nil {
			opt.set(&o)
		}
	}
	if !validEvent(o.event) {
		return fmt.Errorf("%w: %q", ErrInvalidEvent, clip(o.event))
	}
	if !validExcept(o.except) {
		return fmt.Errorf("%w: %q", ErrInvalidExcept, clip(o.except))
	}

	_, err = p.send(app, Message{
		// a history keeps them, and they may be parts of something large
		Topic:  strings.Clone(topic),
		Event:  strings.Clone(o.event),
		Except: strings.Clone(o.except),
		Data:   raw,
		Time:   time.Now(),
	})
	return err
}

func validEvent(name string) bool { return len(name) <= maxEvent && utf8.ValidString(name) }

func validExcept(id string) bool { return len(id) <= maxExcept && utf8.ValidString(id) }

// checkPayload expects compact JSON.
func (p *Plugin) checkPayload(raw []byte) error {
	if limit := p.config.MaxPayload; len(raw) > limit {
		return fmt.Errorf("%w: %d bytes, the limit is %d", ErrPayloadTooLarge, len(raw), limit)
	}
	if !utf8.Valid(raw) {
		return fmt.Errorf("%w: not valid UTF-8", ErrInvalidPayload)
	}
	if hasControlKey(raw) {
		return ErrReservedPayload
	}
	if key, found := duplicateKey(raw); found {
		return fmt.Errorf("%w: %q", ErrDuplicateKey, clip(key))
	}
	return nil
}

// hasControlKey reports whether raw is a JSON object with the control key at
// its top level. Almost no payload gets past the two cheap looks.
func hasControlKey(raw []byte) bool {
	if len(raw) == 0 || raw[0] != '{' {
		return false
	}
	if !bytes.Contains(raw, []byte(`"`+controlKey+`"`)) && !bytes.Contains(raw, []byte(`\u`)) {
		return false
	}

	var object map[string]json.RawMessage
	if err := json.Unmarshal(raw, &object); err != nil {
		return true // not an object after all: refuse what cannot be told
	}
	_, has := object[controlKey]
	return has
}

// send expects a checked message. It returns the id that the message has in the
// topic's history, which is not known yet inside of a transaction.
func (p *Plugin) send(app core.App, m Message) (id string, err error) {
	tx := app.TxInfo()
	if tx == nil {
		return p.publish(m)
	}

	// a callback that is added to an ended transaction would never be called
	// (or, from inside of such a callback, wait for itself)
	if err := checkTransaction(app); err != nil {
		return "", err
	}

	place := p.commits.join(m.Topic, tx)
	tx.OnComplete(func(txErr error) error {
		if txErr != nil {
			place.leave()
			return nil
		}
		// whoever loses access in this transaction does not get the message,
		// also if it was the first thing in it
		p.writes.flush(tx)
		place.arrive(func() {
			if _, err := p.publish(m); err != nil {
				// an error here would look as if the commit had failed
				p.outerApp().Logger().Error(
					"Failed to send a realtime message after its transaction",
					"topic", m.Topic,
					"error", err.Error(),
				)
			}
		})
		return nil
	})

	return "", nil
}

func checkTransaction(app core.App) error {
	db := app.ConcurrentDB()
	if _, ok := db.(*dbx.Tx); !ok {
		db = app.AuxConcurrentDB()
	}

	_, err := db.NewQuery("SELECT 1").Execute()
	switch {
	case errors.Is(err, sql.ErrTxDone):
		return ErrTransactionOver
	case err != nil:
		return fmt.Errorf("topics: the app's transaction cannot be used: %w", err)
	}

	return nil
}
