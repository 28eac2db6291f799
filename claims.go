package topics

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/pocketbase/pocketbase/core"
)

// claims are what a subscribe request says of the client's past, beside what
// PocketBase reads of it. They are the client's word: a false one changes what
// it receives itself, never what others do.
type claims struct {
	// positions are the ids of the last messages that the client has, by key.
	// An empty one says that it has none yet.
	positions map[string]string

	// previous is the id of the client's connection before.
	previous string
}

// maxClientID is the longest id of a client that is remembered, in bytes.
const maxClientID = 255

func claimsOf(e *core.RealtimeSubscribeRequestEvent) (c claims) {
	var body struct {
		Positions json.RawMessage `json:"positions"`
		Previous  json.RawMessage `json:"previousClientId"`
	}
	if err := e.BindBody(&body); err != nil {
		return claims{} // PocketBase has read it, so it is of a form that has none
	}
	if json.Unmarshal(body.Positions, &c.positions) != nil {
		c.positions = nil
	}
	if json.Unmarshal(body.Previous, &c.previous) != nil || len(c.previous) > maxClientID {
		c.previous = ""
	}
	return c
}

// position returns what the client claims to have of a key, if it does.
func (c claims) position(key string) (claim *string) {
	id, given := c.positions[key]
	if !given {
		return nil
	}
	id = strings.Clone(clip(id)) // of a body that is not kept
	return &id
}

// maxPrevious is how many earlier connections of a client are remembered.
const maxPrevious = 8

// follows notes the id of the client's connection before this one, whose own
// messages it does not want either.
func (c *client) follows(previous string) {
	if previous == "" || previous == c.id {
		return
	}
	var ids []string
	if known := c.previous.Load(); known != nil {
		ids = *known
	}
	if slices.Contains(ids, previous) {
		return
	}
	ids = append(slices.Clone(ids), strings.Clone(previous))
	ids = ids[max(0, len(ids)-maxPrevious):]
	c.previous.Store(&ids)
}

// is reports whether an id is that of the client, or of one before it.
func (c *client) is(id string) bool {
	if id == "" {
		return false
	}
	if id == c.id {
		return true
	}
	previous := c.previous.Load()
	return previous != nil && slices.Contains(*previous, id)
}
