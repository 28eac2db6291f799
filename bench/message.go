package main

import (
	"bytes"
	"errors"
	"strconv"
)

// message is what is published: {"phase":1,"publisher":3,"n":17,"at":0,"pad":""}.
type message struct {
	phase     uint32 // one measurement
	publisher uint32
	n         uint32 // from 1, of this publisher in this topic
	at        int64  // Unix nanoseconds of the publish
}

func (m message) append(buf []byte, pad string) []byte {
	buf = append(buf, `{"phase":`...)
	buf = strconv.AppendUint(buf, uint64(m.phase), 10)
	buf = append(buf, `,"publisher":`...)
	buf = strconv.AppendUint(buf, uint64(m.publisher), 10)
	buf = append(buf, `,"n":`...)
	buf = strconv.AppendUint(buf, uint64(m.n), 10)
	buf = append(buf, `,"at":`...)
	buf = strconv.AppendInt(buf, m.at, 10)
	buf = append(buf, `,"pad":"`...)
	buf = append(buf, pad...)
	return append(buf, `"}`...)
}

// makePad makes messages about size bytes long.
func makePad(size int) string {
	const others = 80
	return string(bytes.Repeat([]byte{'x'}, max(0, size-others)))
}

var errNotAMessage = errors.New("this is not a message of the benchmark")

// parseMessage reads what append has written, also as a part of something.
func parseMessage(data []byte) (m message, err error) {
	start := bytes.Index(data, []byte(`"phase":`))
	if start < 0 {
		return m, errNotAMessage
	}
	data = data[start:]
	for i, name := range []string{`"phase":`, `,"publisher":`, `,"n":`, `,"at":`} {
		if !bytes.HasPrefix(data, []byte(name)) {
			return m, errNotAMessage
		}
		data = data[len(name):]
		var v int64
		for len(data) > 0 && data[0] >= '0' && data[0] <= '9' {
			v = v*10 + int64(data[0]-'0')
			data = data[1:]
		}
		switch i {
		case 0:
			m.phase = uint32(v)
		case 1:
			m.publisher = uint32(v)
		case 2:
			m.n = uint32(v)
		case 3:
			m.at = v
		}
	}
	return m, nil
}
