package topics

import (
	"bytes"
	"cmp"
	"encoding/json"
	"slices"
)

// Up to so many keys of an object are compared with each other; more of them
// are sorted.
const fewKeys = 16

// duplicateKey returns a key that an object in raw, at any depth, has twice. A
// rule would see one of the two values and a subscriber's parser perhaps the
// other. raw must be valid JSON in valid UTF-8.
//
// Keys are compared as they are after unescaping: "a" and "\u0061" are one.
func duplicateKey(raw []byte) (key string, found bool) {
	var (
		keyRoom   [2 * fewKeys][]byte
		startRoom [fewKeys]int

		keys   = keyRoom[:0]   // of all objects that are open
		starts = startRoom[:0] // where in keys those of each object begin
	)

	for i := 0; i < len(raw); i++ {
		switch raw[i] {
		case '{':
			starts = append(starts, len(keys))

		case '}':
			start := starts[len(starts)-1]
			if at := duplicateOf(keys[start:]); at >= 0 {
				return string(keys[start+at]), true
			}
			keys, starts = keys[:start], starts[:len(starts)-1]

		case '"':
			text := stringAt(raw[i+1:])
			i += 1 + len(text) // at the closing quote
			if !isKey(raw[i+1:]) {
				continue
			}
			if bytes.IndexByte(text, '\\') >= 0 {
				text = unescape(raw[i-len(text)-1 : i+1])
			}
			keys = append(keys, text)
		}
	}
	return "", false
}

// stringAt returns a JSON string up to its closing quote.
func stringAt(raw []byte) []byte {
	end := 0
	for {
		end += bytes.IndexByte(raw[end:], '"')
		backslashes := 0
		for backslashes < end && raw[end-1-backslashes] == '\\' {
			backslashes++
		}
		if backslashes%2 == 0 {
			return raw[:end]
		}
		end++ // the quote is part of the string
	}
}

// isKey reports whether the string before rest is a key of an object.
func isKey(rest []byte) bool {
	for _, c := range rest {
		switch c {
		case ':':
			return true
		case ' ', '\t', '\n', '\r':
		default:
			return false
		}
	}
	return false
}

func unescape(quoted []byte) []byte {
	var text string
	if err := json.Unmarshal(quoted, &text); err != nil {
		return quoted // not valid JSON: the caller has seen to that
	}
	return []byte(text)
}

// duplicateOf returns the index of a key that is there twice, or -1. It may
// change the order of the keys.
func duplicateOf(keys [][]byte) int {
	if len(keys) > fewKeys {
		slices.SortFunc(keys, func(a, b []byte) int {
			if len(a) != len(b) {
				return cmp.Compare(len(a), len(b))
			}
			return bytes.Compare(a, b)
		})
		for i := 1; i < len(keys); i++ {
			if bytes.Equal(keys[i-1], keys[i]) {
				return i
			}
		}
		return -1
	}

	for i := 1; i < len(keys); i++ {
		for _, other := range keys[:i] {
			if bytes.Equal(keys[i], other) {
				return i
			}
		}
	}
	return -1
}
