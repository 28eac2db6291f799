package topics

import (
	"encoding/json"
	"time"

	"github.com/pocketbase/pocketbase/tools/subscriptions"
	"github.com/pocketbase/pocketbase/tools/types"
)

// Sender is who published a message through the API.
type Sender struct {
	ID         string `json:"id"`
	Collection string `json:"collection"` // its name
}

// envelope is a message as a subscriber with the envelope option and the
// history endpoint show it.
type envelope struct {
	Type   string          `json:"type"`
	Topic  string          `json:"topic"`
	ID     string          `json:"id,omitempty"`
	Event  string          `json:"event,omitempty"`
	Time   string          `json:"time"`
	Sender *Sender         `json:"sender,omitempty"`
	Data   json.RawMessage `json:"data"`
}

func envelopeOf(m Message, id string) envelope {
	return envelope{
		Type:   "message",
		Topic:  m.Topic,
		ID:     id,
		Event:  m.Event,
		Time:   m.Time.UTC().Format(types.DefaultDateLayout),
		Sender: m.Sender,
		Data:   m.Data,
	}
}

func (e envelope) json() []byte {
	raw, err := json.Marshal(e)
	if err != nil {
		panic(err) // the data was checked, the rest are texts
	}
	return raw
}

// control is what a client receives from the plugin itself.
type control struct {
	Type    string `json:"type"`
	Topic   string `json:"topic"`
	Code    string `json:"code,omitempty"`
	Message string `json:"message,omitempty"`

	// of ready, recovered and gap
	ID      string `json:"id,omitempty"`
	Resumed *bool  `json:"resumed,omitempty"`
	From    string `json:"from,omitempty"`
	To      string `json:"to,omitempty"`
	Count   *int   `json:"count,omitempty"`
	Reason  string `json:"reason,omitempty"`

	// of ready: which member the subscriber is
	Member string `json:"member,omitempty"`
}

// onKey wraps the control as the key's subscriber expects it.
func (c control) onKey(key string, enveloped bool) subscriptions.Message {
	var v any = c
	if !enveloped {
		v = map[string]control{controlKey: c}
	}
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // texts and numbers always marshal
	}
	return subscriptions.Message{Name: key, Data: data}
}

// wantsEnvelope reads the option from a key itself.
func wantsEnvelope(key string) bool {
	o, _ := optionsOf(key, parseKeys([]string{key})[key])
	return o.envelope
}

// entry is a message in a hub, with the data lines that all receivers share.
type entry struct {
	message Message
	epoch   string
	offset  uint64 // 0: the topic keeps no history
	plain   dataLine

	// made when the first subscriber needs it, under the topic's lock
	wrapped dataLine
}

func newEntry(m Message) *entry {
	if m.Time.IsZero() {
		m.Time = time.Now()
	}
	return &entry{message: m, plain: newDataLine(m.Data)}
}

func (e *entry) id() string {
	if e.offset == 0 {
		return ""
	}
	return messageID(e.epoch, e.offset)
}

func (e *entry) line(enveloped bool) dataLine {
	if !enveloped {
		return e.plain
	}
	if e.wrapped == nil {
		e.wrapped = newDataLine(envelopeOf(e.message, e.id()).json())
	}
	return e.wrapped
}

// size is what the entry takes of a history's bytes.
func (e *entry) size() int { return len(e.plain) + len(e.message.Event) + entryOverhead }

const entryOverhead = 128
