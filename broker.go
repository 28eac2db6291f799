package topics

import (
	"encoding/json"
	"sync"
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

	// id receives the message's id, where the broker delivers at once
	id *string

	owner owner // who publishes it through the API
}

// Broker carries messages from the process that publishes to the hub of every
// process that has subscribers.
//
// Implementations must be safe for concurrent use, and must hand the messages
// of a topic to every handler in one order.
type Broker interface {
	// Publish takes a message. It must not wait for subscribers. After Close
	// it returns [ErrClosed].
	Publish(m Message) error

	// Subscribe sets the handler that gets every published message, this
	// process's own included. It is called once, before any Publish. The
	// handler waits for no client, but may read the database.
	Subscribe(handler func(Message) error) error

	// Close stops the broker and waits for what it has started. After it the
	// handler is not called any more.
	Close() error
}

// localBroker hands messages straight to the hub of this process.
type localBroker struct {
	handler func(Message) error

	// publishing is held while a message is on its way
	publishing sync.RWMutex
	closed     bool
}

var _ Broker = (*localBroker)(nil)

func (b *localBroker) Publish(m Message) error {
	b.publishing.RLock()
	defer b.publishing.RUnlock()

	if b.closed {
		return ErrClosed
	}
	return b.handler(m)
}

func (b *localBroker) Subscribe(handler func(Message) error) error {
	b.handler = handler
	return nil
}

func (b *localBroker) Close() error {
	b.publishing.Lock()
	defer b.publishing.Unlock()

	b.closed = true
	return nil
}
