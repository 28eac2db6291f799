package topics

import (
	"slices"

	"github.com/pocketbase/pocketbase/tools/subscriptions"
)

// A frame is one server-sent event without its id line, which differs from
// client to client. Its two parts are prepared once and shared: the event line
// by all messages of a subscription key, the data line by all receivers of a
// message. Nobody may change them.
type frame struct {
	event *eventLine
	data  dataLine
	entry *entry // nil for what is not a topic's message

	// enveloped: the entry's envelope is around the data
	enveloped bool

	// record: PocketBase or Go code sends it, not a topic
	record bool
}

// heartbeat is the frame that becomes an event stream comment.
var heartbeat = frame{} // without an event

func newFrame(m subscriptions.Message) frame {
	return frame{event: newEventLine(m.Name), data: newDataLine(m.Data)}
}

func (f frame) isHeartbeat() bool { return f.event == nil }

// size is what the frame counts against [Config.QueueBytes], or a record
// against [Config.RecordQueueBytes].
func (f frame) size() int {
	if f.isHeartbeat() {
		return 0
	}
	size := len(f.event.line) + len(f.data)
	if f.enveloped {
		size += len(f.entry.wrap) + len(envelopeEnd)
	}
	return size
}

// message is the frame as PocketBase's hooks see it.
func (f frame) message() subscriptions.Message {
	if f.isHeartbeat() {
		return subscriptions.Message{}
	}
	data := f.data.json()
	if f.enveloped {
		data = slices.Concat(f.entry.wrap, data, []byte(envelopeEnd))
	}
	return subscriptions.Message{Name: f.event.key, Data: data}
}

// appendTo appends what core's Message.WriteSSE would write.
func (f frame) appendTo(buf, idLine []byte) []byte {
	if f.isHeartbeat() {
		return append(buf, ":\n\n"...)
	}
	buf = f.appendHead(buf, idLine)
	buf = append(buf, f.json()...)
	return f.appendTail(buf)
}

// appendHead appends what comes before the JSON that receivers share. A
// heartbeat has none.
func (f frame) appendHead(buf, idLine []byte) []byte {
	buf = append(buf, idLine...)
	buf = append(buf, f.event.line...)
	buf = append(buf, dataPrefix...)
	if f.enveloped {
		buf = append(buf, f.entry.wrap...)
	}
	return buf
}

// json is the part that may be large. A heartbeat has none.
func (f frame) json() []byte { return f.data.json() }

// appendTail appends what comes after the JSON.
func (f frame) appendTail(buf []byte) []byte {
	if f.enveloped {
		buf = append(buf, envelopeEnd...)
	}
	return append(buf, dataSuffix...)
}

type eventLine struct {
	key  string
	line []byte
}

func newEventLine(key string) *eventLine {
	return &eventLine{key: key, line: []byte("event:" + key + "\n")}
}

const (
	dataPrefix = "data:"
	dataSuffix = "\n\n"
)

// dataLine is the last line of an event, with the empty line that ends it.
type dataLine []byte

func newDataLine(json []byte) dataLine {
	l := make(dataLine, 0, len(dataPrefix)+len(json)+len(dataSuffix))
	l = append(l, dataPrefix...)
	l = append(l, json...)
	return append(l, dataSuffix...)
}

func (l dataLine) json() []byte {
	return l[len(dataPrefix) : len(l)-len(dataSuffix)]
}
