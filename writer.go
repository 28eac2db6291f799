package topics

import (
	"errors"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/pocketbase/pocketbase/core"
)

// The part of a client that writes. It runs in core's connection handler.

const (
	// flushPause is the least time between two flushes of a busy connection,
	// so that what is published in a burst shares them. The first message after
	// a quiet moment is sent at once.
	flushPause = time.Millisecond

	// A machine with more to write than it can lets its writers wait for the
	// CPU. If more than a few messages pile up meanwhile, writers pause for some
	// times as long, within this limit: flushes are what costs.
	flushBacklog     = 2
	flushPauseMax    = 32 * time.Millisecond
	flushPauseFactor = 4
)

// pause waits until the connection may be flushed again.
func (c *client) pause() {
	now := time.Now()

	c.mu.Lock()
	late := max(c.late, now.Sub(c.handed))
	c.mu.Unlock()
	c.late = 0

	least := flushPause
	if c.shared {
		least = min(max(least, flushPauseFactor*late), flushPauseMax)
	}
	if rest := least - now.Sub(c.flushed); rest > 0 {
		time.Sleep(rest)
		c.late = time.Since(now) - rest
	}
}

// write is the OnRealtimeMessageSend handler of the client. It runs in core's
// connection handler, for the message that came out of the channel.
func (c *client) write(e *core.RealtimeMessageEvent) error {
	if c.writing {
		return e.Next() // one of our own triggers below
	}

	if err := c.conn.arm(); err != nil {
		return err
	}

	if !c.greeted {
		// core's PB_CONNECT, which does not pass the channel and comes right
		// after the broker got the client
		c.greeted = true
		c.markRegistered()
		return e.Next()
	}

	c.pause()
	frames, err := c.take()
	if err != nil {
		return err
	}

	c.writing = true
	c.peer.writing()
	if e.App.OnRealtimeMessageSend().Length() == 1 {
		err = c.writeAll(e, *frames)
	} else {
		err = c.writeEach(e, *frames)
	}
	c.writing = false
	c.peer.written()
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.closeDead()
		}
		return err
	}

	c.flushed, c.shared = time.Now(), len(*frames) > flushBacklog
	c.noteFlushed(*frames)
	c.done(frames)
	giveBack(frames)
	c.refill()

	if c.pulse != nil {
		c.pulse.Reset(c.limits.heartbeat)
	}

	return nil
}

// writeBuffers are borrowed for the duration of a write, so that idle
// connections hold none.
var writeBuffers = sync.Pool{New: func() any {
	b := make([]byte, 0, writeBufferSize)
	return &b
}}

const writeBufferSize = 16 << 10

// writeAll writes the frames straight to the response and flushes once.
func (c *client) writeAll(e *core.RealtimeMessageEvent, frames []frame) error {
	pooled := writeBuffers.Get().(*[]byte)
	buf := (*pooled)[:0]
	defer func() {
		*pooled = buf[:0]
		writeBuffers.Put(pooled)
	}()

	for i, f := range frames {
		large := f.size() > writeBufferSize/2
		if large {
			buf = f.appendHead(buf, c.idLine)
		} else {
			buf = f.appendTo(buf, c.idLine)
		}
		if !large && len(buf) < writeBufferSize/2 && i < len(frames)-1 {
			continue
		}
		if err := c.conn.arm(); err != nil {
			return err
		}
		if _, err := e.Response.Write(buf); err != nil {
			return err
		}
		buf = buf[:0]
		if !large {
			continue
		}
		// in pieces, so that each has the whole timeout
		for piece := range slices.Chunk(f.json(), writeBufferSize) {
			if err := c.conn.arm(); err != nil {
				return err
			}
			if _, err := e.Response.Write(piece); err != nil {
				return err
			}
		}
		buf = f.appendTail(buf)
	}
	if len(buf) > 0 { // of a large frame
		if _, err := e.Response.Write(buf); err != nil {
			return err
		}
	}

	return e.Flush()
}

// writeEach takes each message through the handlers that others have bound to
// the hook, and flushes once after the last.
func (c *client) writeEach(e *core.RealtimeMessageEvent, frames []frame) error {
	// e already is the event of the first message
	if frames[0].isHeartbeat() {
		if _, err := e.Response.Write(frames[0].appendTo(nil, nil)); err != nil {
			return err
		}
	} else if err := e.Next(); err != nil {
		return err
	}

	for _, f := range frames[1:] {
		if err := c.conn.arm(); err != nil {
			return err
		}

		m := f.message()
		next := new(core.RealtimeMessageEvent)
		next.RequestEvent = e.RequestEvent
		next.Client = e.Client
		next.Message = &m

		err := e.App.OnRealtimeMessageSend().Trigger(next, func(e *core.RealtimeMessageEvent) error {
			return e.Message.WriteSSE(e.Response, e.Client.Id())
		})
		if err != nil {
			return err
		}
	}

	if len(frames) == 1 && !frames[0].isHeartbeat() {
		return nil // flushed by core
	}

	return e.Flush()
}
