package topics

import (
	"encoding/json"
	"time"
)

// Message is one message on its way to the subscribers of a topic.
type Message struct {
	// Topic is the topic's name.
	Topic string `json:"topic"`

	// Data is what subscribers receive: one line of compact JSON. It is shared
	// between all receivers, so nobody may change it.
	Data json.RawMessage `json:"data"`

	// Except is the id of a client that does not get the message, or empty.
	Except string `json:"except,omitempty"`

	// Event is a name that the sender has given the message, or empty.
	// Subscribers with the envelope option see it.
	Event string `json:"event,omitempty"`

	// Sender is who published the message through the API, or nil.
	Sender *Sender `json:"sender,omitempty"`

	// Time is when the message was sent.
	Time time.Time `json:"time"`

	owner  owner     // who publishes it through the API
	repeat repeatKey // its idempotency key, if it has one
}
