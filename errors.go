package topics

import (
	"errors"
	"fmt"
	"net/http"

	validation "github.com/pocketbase/ozzo-validation/v4"
)

// Errors that [Register], [Notify] and the other functions return. They come
// wrapped: test for them with [errors.Is].
var (
	// ErrNotRegistered says that the app has no topics plugin: call
	// [MustRegister] with the same app first.
	ErrNotRegistered = errors.New("topics: the plugin is not registered on this app; call topics.MustRegister(app, topics.Config{})")

	// ErrAlreadyRegistered says that the app already has the plugin. One
	// registration per app is enough: a transaction's app counts as the app.
	ErrAlreadyRegistered = errors.New("topics: the plugin is already registered on this app")

	// ErrClosed says that the app is terminating (or has terminated), so that
	// nothing can be sent any more.
	ErrClosed = errors.New("topics: the plugin is closed because the app is terminating")

	// ErrMalformedTopic says that a topic is not made of 1 or more segments of
	// ASCII letters, digits and -_.:@~ joined by single slashes, or is longer
	// than 255 bytes.
	ErrMalformedTopic = errors.New("topics: malformed topic")

	// ErrReservedTopic says that a topic is PocketBase's own: PB_CONNECT,
	// @oauth2, or <collection> and <collection>/<anything> of an existing
	// collection. No topic rule guards those, so nothing is sent to them. Or it
	// has a name that browsers or SDKs take for their own, such as error,
	// message or toString: docs/errors.md lists them.
	ErrReservedTopic = errors.New("topics: the topic belongs to PocketBase, or has a name that clients take for their own")

	// ErrInvalidPayload says that the data has no JSON form (or that its JSON
	// is not valid UTF-8).
	ErrInvalidPayload = errors.New("topics: the data cannot be sent as JSON")

	// ErrPayloadTooLarge says that the data's JSON is longer than
	// [Config.MaxPayload].
	ErrPayloadTooLarge = errors.New("topics: the data is too large")

	// ErrReservedPayload says that the data is an object with the top-level
	// key "@topics", which marks the plugin's own control messages.
	ErrReservedPayload = errors.New(`topics: the data may not have the top-level key "@topics"`)

	// ErrDuplicateKey says that an object in the data, at any depth, has a key
	// twice: which of the two values counts would be up to each parser. Only a
	// [json.RawMessage], a [json.Marshaler] or a map with keys that JSON writes
	// alike can be like this.
	ErrDuplicateKey = errors.New("topics: an object in the data has a key twice")

	// ErrInvalidEvent says that the name given with [Event] is too long or not
	// valid UTF-8.
	ErrInvalidEvent = errors.New("topics: the event must be a text of at most 64 bytes")

	// ErrInvalidExcept says that the client id given with [Except] is too long or
	// not valid UTF-8.
	ErrInvalidExcept = errors.New("topics: the client id to leave out must be a text of at most 255 bytes")

	// ErrNoHistory says that the topic's rule keeps no messages.
	ErrNoHistory = errors.New("topics: the topic keeps no history")

	// ErrUnavailable says that the topic rules or the history cannot be read at
	// this moment. Nothing was sent or changed: try again.
	ErrUnavailable = errors.New("topics: the topic rules or the history cannot be read")

	// ErrNoPresence says that the topic's rule tracks no members.
	ErrNoPresence = errors.New("topics: the topic tracks no members")

	// ErrInvalidPosition says that a position of [HistoryOptions] is not the id
	// of a message, that there are two, or that the limit is out of range.
	ErrInvalidPosition = errors.New("topics: the position is not the id of a message")

	// ErrTransactionOver says that the given app belongs to a transaction that
	// has already ended, so that there is no commit to wait for: use the outer
	// app after a transaction.
	ErrTransactionOver = errors.New("topics: the app's transaction is over; use the outer app")
)

// Codes are stable: clients may compare them. docs/errors.md has a page for each.
const (
	codeUnknown   = "topic_unknown"
	codeMalformed = "topic_malformed"
	codeDenied    = "topic_denied"
	codeRuleError = "topic_rule_error"
	codeReserved  = "topic_reserved"
	codeTakenName = "topic_name_reserved"
	codeRevoked   = "topic_revoked"
	codeOptions   = "topic_options_invalid"
	codeLongKey   = "topic_options_too_long"
	codeGap       = "topic_gap"

	codeTopicSubscriptions   = "topic_subscriptions_exceeded"
	codeSubscriptions        = "subscriptions_exceeded"
	codeAccountSubscriptions = "account_subscriptions_exceeded"
	codeAccountConnections   = "account_connections_exceeded"
	codeAddressConnections   = "address_connections_exceeded"

	codePayloadRequired = "payload_required"
	codePayloadInvalid  = "payload_invalid"
	codePayloadTooLarge = "payload_too_large"
	codePayloadReserved = "payload_reserved"
	codeDuplicateKey    = "payload_duplicate_key"

	// of the log
	codeSlowConsumer = "slow_consumer"
	codeWriteTimeout = "write_timeout"
	codePanic        = "panic_recovered"

	codeTopicRequired   = "topic_required"
	codeBodyInvalid     = "body_invalid"
	codeMessagesInvalid = "messages_invalid"
	codeTooManyMessages = "too_many_messages"
	codeEventInvalid    = "event_invalid"
	codeExceptInvalid   = "except_invalid"
	codeKeyReused       = "idempotency_key_reused"
	codeKeyInvalid      = "idempotency_key_invalid"
	codeKeyBusy         = "idempotency_key_busy"
	codeSinceInvalid    = "since_invalid"
	codeLimitInvalid    = "limit_invalid"
	codeNoHistory       = "topic_without_history"

	codeUnavailable    = "history_unavailable"
	codeTooManyTopics  = "sender_topics_exceeded"
	codeTooMuchHistory = "sender_history_exceeded"
	codeSenderBehind   = "sender_backlog_exceeded"

	codeNoPresence      = "presence_disabled"
	codePresenceRevoked = "presence_revoked"
	codeStateInvalid    = "state_invalid"
	codeClientInvalid   = "client_invalid"
	codeOtherAddress    = "client_other_address"
	codeSignedOut       = "client_signed_out"
	codeNoMember        = "not_a_member"

	codeRulesNotEmpty = "validation_rules_not_empty"
)

// action is what somebody wants to do with a topic. Each has a rule.
type action string

const (
	actionSubscribe action = "subscribe to"
	actionPublish   action = "publish to"
	actionPresence  action = "see the members of"
)

// denial is a refusal: a stable code and a sentence for the developer who
// meets it. It never carries anything of the rule or of the data it reads.
// The cause is for the log only.
type denial struct {
	code    string
	message string
	cause   error
}

func (d *denial) Error() string {
	if d.cause != nil {
		return d.code + ": " + d.cause.Error()
	}
	return d.code
}

func (d *denial) Unwrap() error { return d.cause }

// status is the HTTP status the denial is answered with.
func (d *denial) status() int {
	switch d.code {
	case codeMalformed, codeReserved, codeTakenName, codeNoPresence:
		return http.StatusBadRequest
	default:
		return http.StatusForbidden
	}
}

func (d *denial) fieldError() validation.Error {
	return validation.NewError(d.code, d.message)
}

func denyUnknown() *denial {
	return &denial{code: codeUnknown, message: "No topic rule matches this topic. Add a record for it to the topic rules collection."}
}

func denyMalformed() *denial {
	return &denial{code: codeMalformed, message: "The topic name is malformed. Use segments of letters, digits and -_.:@~ joined by single slashes, at most 255 bytes in all."}
}

func denyOptions() *denial {
	return &denial{code: codeOptions, message: "The options of this subscription are not valid. They are one encoded JSON object of query and headers; replay must be a number from 0 on, envelope and presence true or false, resume a text of 1 to 128 bytes, and state an object of at most 2048 bytes of JSON without duplicate keys."}
}

func denyIgnoredOption(name string) *denial {
	return &denial{code: codeOptions, message: "The option " + name + " does nothing here: it is for PocketBase's record subscriptions. Leave it out, or let the topic's rule read @request.query." + name + "."}
}

func denyLongKey() *denial {
	return &denial{code: codeLongKey, message: fmt.Sprintf("The topic with its encoded options is longer than the %d bytes that PocketBase allows. Make the options shorter, or set the state with POST /api/topics/presence.", maxKey)}
}

func denyTakenName() *denial {
	return &denial{code: codeTakenName, message: "A topic cannot have this name: browsers or SDKs take it for an event or a property of their own. Use another word, or more segments."}
}

func denyTopicSubscriptions() *denial {
	return &denial{code: codeTopicSubscriptions, message: "This connection has too many subscriptions with different options to this topic. Use one of them for all of its listeners."}
}

func denySubscriptions() *denial {
	return &denial{code: codeSubscriptions, message: "This connection has too many subscriptions to topics. Unsubscribe from some, then subscribe again."}
}

func denyAccountSubscriptions() *denial {
	return &denial{code: codeAccountSubscriptions, message: "The connections of this account have too many subscriptions to topics. Close some, then subscribe again."}
}

func denyAccountConnections() *denial {
	return &denial{code: codeAccountConnections, message: "This account has too many connections that subscribe to topics. Close some, then subscribe again."}
}

// isLimit reports whether the denial is one of the limits of subscriptions: of
// those that are told on a key.
func (d *denial) isLimit() bool {
	switch d.code {
	case codeLongKey, codeTopicSubscriptions, codeSubscriptions, codeAccountSubscriptions, codeAccountConnections:
		return true
	}
	return false
}

func denyReserved() *denial {
	return &denial{code: codeReserved, message: "The topic belongs to PocketBase. Use a topic whose first segment is not the name or id of a collection."}
}

// denyRule does not tell a missing record, a false rule and a rule for
// superusers apart: which one it was is a fact about data.
func denyRule(a action) *denial {
	return &denial{code: codeDenied, message: "You are not allowed to " + string(a) + " this topic."}
}

// errTooManyTopics is [Config.MaxTopicsPerSender], where a message would begin
// one topic more.
var errTooManyTopics = errors.New("topics: the sender has begun too many topics")

// errSenderBehind says that too much of a sender waits for the disk.
var errSenderBehind = errors.New("topics: too many messages of the sender wait to be stored")

// errTooMuchHistory says that what is kept of a sender is as much as it may be.
var errTooMuchHistory = errors.New("topics: too much is kept of the sender")

func denyTooMuchHistory() *denial {
	return &denial{code: codeTooMuchHistory, message: "As many of your messages are kept as may be. Publish less, or to topics that keep nothing."}
}

func denyTooManyTopics() *denial {
	return &denial{code: codeTooManyTopics, message: "You have begun too many topics that keep a history. Publish to topics that have messages already."}
}

func denyNoPresence() *denial {
	return &denial{code: codeNoPresence, message: "This topic tracks no members. Set presence in its topic rule."}
}

func denyRuleError(cause error) *denial {
	return &denial{code: codeRuleError, message: "The rule of this topic could not be evaluated. The server's log says why.", cause: cause}
}

// Reasons of a revocation. Like denials they say nothing about data.
const (
	reasonSignIn     = "The sign-in of this subscription does not count any more. Sign in and subscribe again."
	reasonRule       = "You are not allowed to subscribe to this topic any more."
	reasonUnknown    = "No topic rule matches this topic any more."
	reasonNoPresence = "This topic tracks no members any more."
	reasonPresence   = "You are not allowed to see the members of this topic any more."
	reasonRuleError  = "The rule of this topic cannot be evaluated any more. The server's log says why."
)

func reasonOf(a action, d *denial, signedOut bool) string {
	switch {
	case d.code == codeUnknown:
		return reasonUnknown
	case d.code == codeRuleError:
		return reasonRuleError
	case signedOut:
		return reasonSignIn
	case a == actionPresence:
		return reasonPresence
	default:
		return reasonRule
	}
}
