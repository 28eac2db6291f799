package topics

import (
	"bytes"
	"encoding/json"
	"net/http"
	"sync"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/picker"
)

// All JSON that clients receive has one form, so that a text is the same bytes
// on every way: one line, with <, > and & as they are, and with U+2028, U+2029
// and U+0085 escaped, because parsers of some languages end a line there.

// lineEncoder is a [json.Encoder] with its output. Making one for each message
// would cost an allocation.
type lineEncoder struct {
	json *json.Encoder
	line []byte
}

func (l *lineEncoder) Write(line []byte) (int, error) {
	l.line = bytes.Clone(bytes.TrimSuffix(line, []byte("\n")))
	return len(line), nil
}

var lineEncoders = sync.Pool{New: func() any {
	l := new(lineEncoder)
	l.json = json.NewEncoder(l)
	l.json.SetEscapeHTML(false)
	return l
}}

// marshalLine is [json.Marshal] in the form of this package. It is v1 of
// encoding/json on purpose: v2 orders maps at random.
func marshalLine(v any) ([]byte, error) {
	l := lineEncoders.Get().(*lineEncoder)
	err := l.json.Encode(v)
	line := l.line
	l.line = nil
	if err != nil {
		// not put back: an encoder may keep an error, and a panic of the app's
		// code leaves it behind as well
		return nil, err
	}
	lineEncoders.Put(l)
	return canonical(line), nil
}

func mustMarshal(v any) []byte {
	raw, err := marshalLine(v)
	if err != nil {
		panic(err) // texts, numbers, times and JSON that was checked
	}
	return raw
}

// canonical brings valid, compact JSON into the form of this package: raw itself
// if it has it already, as most have.
func canonical(raw []byte) []byte {
	if !mayNeedCanonical(raw) {
		return raw
	}

	var (
		line []byte // up to raw[done]
		done int
	)
	replace := func(at, length int, with string) {
		if line == nil {
			line = make([]byte, 0, len(raw))
		}
		line = append(line, raw[done:at]...)
		line = append(line, with...)
		done = at + length
	}
	for i := 0; i < len(raw); i++ {
		rest := raw[i:]
		switch rest[0] {
		case '\\':
			if with := unescaped(rest); with != "" {
				replace(i, len(`\u003c`), with)
				i += len(`\u003c`) - 1
			} else {
				i++ // what it escapes begins no escape
			}
		case 0xC2:
			if len(rest) > 1 && rest[1] == 0x85 {
				replace(i, 2, `\u0085`)
			}
		case 0xE2:
			if len(rest) > 2 && rest[1] == 0x80 {
				switch rest[2] {
				case 0xA8:
					replace(i, 3, `\u2028`)
				case 0xA9:
					replace(i, 3, `\u2029`)
				}
			}
		}
	}
	if line == nil {
		return raw
	}
	line = append(line, raw[done:]...)
	if cap(line)-len(line) > len(line)/8 {
		line = bytes.Clone(line) // the rest would be kept as well
	}
	return line
}

var (
	escapeBegin = []byte(`\u00`)
	nextLine    = []byte("\u0085")
	separators  = []byte("\xe2\x80") // with which U+2028 and U+2029 begin
)

// mayNeedCanonical is a quick look. It may return false positives, never false
// negatives.
func mayNeedCanonical(raw []byte) bool {
	return bytes.Contains(raw, escapeBegin) || bytes.Contains(raw, nextLine) || bytes.Contains(raw, separators)
}

// unescaped returns the character that an escape at the beginning of raw stands
// for, if it is one that this package does not escape and Go does.
func unescaped(raw []byte) string {
	if len(raw) < len(`\u003c`) || string(raw[:len(`\u00`)]) != `\u00` {
		return ""
	}
	switch string(raw[len(`\u00`):len(`\u003c`)]) {
	case "3c", "3C":
		return "<"
	case "3e", "3E":
		return ">"
	case "26":
		return "&"
	default:
		return ""
	}
}

// writeLine answers like core's e.JSON, with its fields parameter, but in the
// form of this package whatever core's JSON library is.
func writeLine(e *core.RequestEvent, v any) error {
	line, err := marshalLine(v)
	if err != nil {
		return err
	}
	if fields := e.Request.URL.Query().Get("fields"); fields != "" {
		picked, err := picker.Pick(json.RawMessage(line), fields)
		if err != nil {
			return err
		}
		if line, err = marshalLine(picked); err != nil {
			return err
		}
	}
	return e.Blob(http.StatusOK, "application/json", append(line, '\n'))
}
