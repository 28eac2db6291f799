package topics

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// referenceDuplicate looks for duplicates in the plain way.
func referenceDuplicate(raw []byte) bool {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	return duplicateIn(d)
}

func duplicateIn(d *json.Decoder) (found bool) {
	first, err := d.Token()
	if err != nil {
		panic(err)
	}
	switch first {
	case json.Delim('{'):
		seen := map[string]bool{}
		for d.More() {
			key, err := d.Token()
			if err != nil {
				panic(err)
			}
			name := key.(string)
			found = found || seen[name]
			seen[name] = true
			found = duplicateIn(d) || found
		}
	case json.Delim('['):
		for d.More() {
			found = duplicateIn(d) || found
		}
	default:
		return false
	}
	if _, err := d.Token(); err != nil {
		panic(err)
	}
	return found
}

func TestDuplicateKey(t *testing.T) {
	many := func(last string) string {
		var b strings.Builder
		for i := range 3 * fewKeys {
			fmt.Fprintf(&b, `"key%d":{"a":%d},`, i, i)
		}
		return "{" + b.String() + last + "}"
	}

	for raw, want := range map[string]string{
		`null`:                                "",
		`"{\"a\":1,\"a\":2}"`:                 "",
		`{}`:                                  "",
		`{"a":1,"b":2}`:                       "",
		`{"a":1,"a":2}`:                       "a",
		`{"a":1,"A":2}`:                       "",
		`{"a":"a","b":"a"}`:                   "",
		`{"a":["a","a"],"b":["a","a"]}`:       "",
		`{"a":1,"\u0061":2}`:                  "a",
		`{"\u0061":1,"\u0061":2}`:             "a",
		`{"\\":1,"\u005c":2}`:                 `\`,
		`{"\"":1,"\u0022":2}`:                 `"`,
		`{"a\\":1,"a\\\\":2}`:                 "",
		`{"":1,"":2}`:                         "",
		`{"é":1,"\u00e9":2}`:                  "é",
		`{"😀":1,"\ud83d\ude00":2}`:            "😀",
		`{"a":{"b":[{"c":1},{"d":1}]}}`:       "",
		`{"a":{"b":[{"c":1},{"d":1,"d":2}]}}`: "d",
		`[{"a":1},{"a":1}]`:                   "",
		`{"a":{"a":{"a":1}}}`:                 "",
		`{"a":{"x":1},"b":{"x":1},"a":1}`:     "a",
		"{\"a\" : 1 ,\n\"a\"\t:\r2}":          "a",
		many(`"last":1`):                      "",
		many(`"key0":1`):                      "key0",
		many(`"\u006bey17":1`):                "key17",
	} {
		require.True(t, json.Valid([]byte(raw)), raw)
		key, found := duplicateKey([]byte(raw))
		require.Equal(t, referenceDuplicate([]byte(raw)), found, raw)
		require.Equal(t, want, key, raw)
	}
}

// Generated JSON has duplicates far more often than bytes of a fuzzer.
func TestDuplicateKeyAgainstTheReference(t *testing.T) {
	r := newRand(t)
	found := 0
	for range *rounds * 200 {
		raw := randomJSON(r, 4)
		want := referenceDuplicate(raw)
		_, got := duplicateKey(raw)
		require.Equal(t, want, got, "%s", raw)
		if got {
			found++
		}
	}
	require.Positive(t, found)
}

func randomJSON(r *rand.Rand, depth int) []byte {
	space := func() string { return []string{"", "", "", " ", "\n\t"}[r.IntN(5)] }
	text := func(bound int) string {
		n := r.IntN(bound)
		if r.IntN(4) == 0 {
			return fmt.Sprintf(`"\u%04x%d"`, 'a'+n%26, n/26)
		}
		return fmt.Sprintf(`"%c%d"`, 'a'+n%26, n/26)
	}

	var b bytes.Buffer
	b.WriteString(space())
	kind := r.IntN(5)
	if depth == 0 {
		kind = r.IntN(3)
	}
	switch kind {
	case 0:
		b.WriteString(text(5))
	case 1:
		b.WriteString([]string{`null`, `true`, `-1.5e3`, `"\\\""`, `"{\"a\":1,"`}[r.IntN(5)])
	case 2:
		b.WriteString(`{}`)
	case 3:
		b.WriteByte('[')
		for i := range r.IntN(4) {
			if i > 0 {
				b.WriteByte(',')
			}
			b.Write(randomJSON(r, depth-1))
		}
		b.WriteByte(']')
	default:
		b.WriteByte('{')
		n := r.IntN(5)
		if r.IntN(10) == 0 {
			n = r.IntN(60)
			depth = 1
		}
		for i := range n {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(space() + text(1+n*n) + space() + ":")
			b.Write(randomJSON(r, depth-1))
		}
		b.WriteByte('}')
	}
	b.WriteString(space())
	return b.Bytes()
}

func FuzzDuplicateKey(f *testing.F) {
	for _, raw := range []string{`{"a":1,"\u0061":2}`, `[{"a":{"b":"}"}}]`, `{"\\":"\\","\"":1}`, `{"a" : {}, "b":[]}`} {
		f.Add([]byte(raw))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if !json.Valid(raw) || !utf8.Valid(raw) {
			return // it is refused before
		}
		_, found := duplicateKey(raw)
		require.Equal(t, referenceDuplicate(raw), found, "%s", raw)
	})
}

// Objects with many keys, and strings that are all escapes, take time in
// proportion to their length.
func TestDuplicateKeyIsNotQuadratic(t *testing.T) {
	var keys bytes.Buffer
	keys.WriteString(`{"":0`)
	for i := range 200_000 {
		fmt.Fprintf(&keys, `,"%x":0`, i)
	}
	keys.WriteByte('}')

	for name, raw := range map[string][]byte{
		"keys":   keys.Bytes(),
		"quotes": []byte(`{"a":"` + strings.Repeat(`\"`, 1<<20) + `"}`),
		"slash":  []byte(`{"a":"` + strings.Repeat(`\\`, 1<<20) + `"}`),
		"spaces": []byte(`["a"` + strings.Repeat(" ", 1<<20) + `,"a"` + strings.Repeat(" ", 1<<20) + `]`),
		"deep":   []byte(strings.Repeat(`{"a":[`, 4000) + strings.Repeat(`]}`, 4000)),
	} {
		require.True(t, json.Valid(raw), name)
		start := time.Now()
		_, found := duplicateKey(raw)
		require.False(t, found, name)
		require.Less(t, time.Since(start), 5*time.Second, name) // a quadratic search of the keys takes minutes
	}
}

func BenchmarkDuplicateKey(b *testing.B) {
	var large bytes.Buffer
	large.WriteString(`{"id":"x"`)
	for i := range 2000 {
		fmt.Fprintf(&large, `,"field%d":"value %d"`, i, i)
	}
	large.WriteByte('}')

	list := []byte("[" + strings.TrimSuffix(strings.Repeat(`{"id":"abcdefghijklmno","name":"Ann","age":33,"tags":["a","b"]},`, 1000), ",") + "]")

	for _, p := range []struct {
		name string
		raw  []byte
	}{
		{"small", []byte(`{"id":"abcdefghijklmno","text":"Hello, how are you today?","author":{"name":"Ann","role":"admin"},"likes":12,"read":false}`)},
		{"list", list},
		{"large object", large.Bytes()},
		{"text", []byte(`{"text":"` + strings.Repeat("All work and no play. ", 2000) + `"}`)},
	} {
		b.Run(p.name+"/duplicateKey", func(b *testing.B) {
			b.SetBytes(int64(len(p.raw)))
			b.ReportAllocs()
			for b.Loop() {
				duplicateKey(p.raw)
			}
		})
		b.Run(p.name+"/json.Compact", func(b *testing.B) {
			b.SetBytes(int64(len(p.raw)))
			b.ReportAllocs()
			var line bytes.Buffer
			for b.Loop() {
				line.Reset()
				_ = json.Compact(&line, p.raw) // valid
			}
		})
	}
}
