package topics

import (
	"encoding/json"
	"slices"
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

// envelopeEnd follows the data.
const envelopeEnd = "}"

// beginning is the envelope's JSON up to its data, which comes last.
func (e envelope) beginning() []byte {
	empty := e
	empty.Data = json.RawMessage("0")
	raw := mustMarshal(empty)
	return slices.Clip(raw[:len(raw)-len("0"+envelopeEnd)])
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
	Certain *bool  `json:"certain,omitempty"` // of gap

	// of ready: which member the subscriber is
	Member string `json:"member,omitempty"`
}

// onKey wraps the control as the key's subscriber expects it.
func (c control) onKey(key string, enveloped bool) subscriptions.Message {
	var v any = c
	if !enveloped {
		v = map[string]control{controlKey: c}
	}
	return subscriptions.Message{Name: key, Data: mustMarshal(v)}
}

// wantsEnvelope reads the option from a key itself.
func wantsEnvelope(key string) bool {
	o, _ := optionsOf(key, parseKeys([]string{key})[key])
	return o.envelope
}

// entry is a message in a hub. Its data is in memory once, for all receivers
// and for the history.
type entry struct {
	message Message // its Data is that of plain
	epoch   string
	offset  uint64 // 0: the topic keeps no history
	plain   dataLine
	loaded  bool // from the disk, which does not know who counts for it

	// wrap begins the envelope, up to the data. It is made when the first
	// subscriber needs it, under the topic's lock.
	wrap []byte
}

func newEntry(m Message) *entry {
	if m.Time.IsZero() {
		m.Time = time.Now()
	}
	e := &entry{plain: newDataLine(m.Data)}
	m.Data = json.RawMessage(e.plain.json())
	e.message = m
	return e
}

func (e *entry) id() string {
	if e.offset == 0 {
		return ""
	}
	return messageID(e.epoch, e.offset)
}

// frame is the entry as the subscribers of a key receive it.
func (e *entry) frame(event *eventLine, enveloped bool) frame {
	if enveloped && e.wrap == nil {
		e.wrap = envelopeOf(e.message, e.id()).beginning()
	}
	return frame{event: event, data: e.plain, entry: e, enveloped: enveloped}
}

// size is what the entry takes of the memory and of a history's bytes: all of
// it that a client has chosen, and a constant for the rest.
func (e *entry) size() int {
	m := &e.message
	return len(e.plain) + 2*len(m.Event) + len(m.Except) + entryOverhead
}

// entryOverhead is the entry itself, its sender and the beginning of its
// envelope, as measured by TestHistoryTotalBytes.
const entryOverhead = 512
