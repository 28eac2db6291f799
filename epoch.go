package topics

import (
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pocketbase/pocketbase/tools/security"
)

// chain is the epochs of a data directory, in their order. Every start begins
// one, so that two copies of a directory part ways; after a clean stop it is
// linked to the one before, because no message is missing between the two.
// Positions are followed along the links. Each name is greater than those
// before, also if the clock was set back.
type chain struct {
	mu     sync.Mutex
	list   []savedEpoch
	places map[string]int // of list, by name
	newest string         // the greatest name that was seen
}

// savedEpoch is an epoch as the disk keeps it. Epochs of one segment are linked.
type savedEpoch struct {
	name    string
	segment int
}

const (
	epochTime     = 8 // letters, until the year 2059
	epochRandom   = 4
	epochAlphabet = "0123456789abcdefghijklmnopqrstuvwxyz"

	// maxEpochName is the longest name that is read, in bytes.
	maxEpochName = 64

	// maxEpochs bounds the chain. A position from before is of no known epoch.
	maxEpochs = 10_000
)

// begin adds an epoch, linked to the one before or not.
func (c *chain) begin(linked bool) savedEpoch {
	c.mu.Lock()
	defer c.mu.Unlock()

	at := time.Now().UnixMilli()
	if len(c.newest) >= epochTime {
		if newest, err := strconv.ParseInt(c.newest[:epochTime], 36, 64); err == nil {
			at = max(at, newest+1)
		}
	}
	e := savedEpoch{name: strconv.FormatInt(at, 36) + security.RandomStringWithAlphabet(epochRandom, epochAlphabet)}
	if n := len(c.list); n > 0 {
		e.segment = c.list[n-1].segment
	}
	if !linked {
		e.segment++
	}
	c.add(e)
	return e
}

// add expects c.mu to be held.
func (c *chain) add(e savedEpoch) {
	c.newest = max(c.newest, e.name)
	if len(c.list) >= maxEpochs {
		c.list = c.list[len(c.list)/2:]
		c.places = nil
	}
	if c.places == nil {
		c.places = make(map[string]int, len(c.list)+1)
		for i, known := range c.list {
			c.places[known.name] = i
		}
	}
	c.places[e.name] = len(c.list)
	c.list = append(c.list, e)
}

// take makes the chain that of the disk.
func (c *chain) take(list []savedEpoch) {
	c.mu.Lock()
	defer c.mu.Unlock()

	c.list, c.places = nil, nil
	for _, e := range list {
		c.add(e)
	}
}

// saw makes later names greater than this one.
func (c *chain) saw(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()

	c.newest = max(c.newest, name)
}

// segment returns the segment of an epoch in which a log that has begun in
// another one lived, and false if it did not live then. A log of older tables
// has begun in an epoch of its own.
func (c *chain) segment(name, begun string) (segment int, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()

	place, listed := c.places[name]
	switch {
	case listed && name >= begun:
		return c.list[place].segment, true
	case name == begun && len(c.list) > 0:
		return c.list[0].segment, true
	default:
		return 0, false
	}
}

// has reports whether the directory has seen an epoch.
func (c *chain) has(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()

	_, listed := c.places[name]
	return listed && name != firstEpoch
}

// linked reports whether no message of a log is missing between two epochs.
func (c *chain) linked(a, b, begun string) bool {
	if a == b {
		return true
	}
	of, known := c.segment(a, begun)
	other, alsoKnown := c.segment(b, begun)
	return known && alsoKnown && of == other
}

// The positions of messages are written as epoch:offset.
func messageID(epoch string, offset uint64) string {
	return epoch + ":" + strconv.FormatUint(offset, 10)
}

func parseMessageID(id string) (epoch string, offset uint64, ok bool) {
	epoch, number, found := strings.Cut(id, ":")
	if !found || epoch == "" || strings.Trim(number, "0123456789") != "" {
		return "", 0, false
	}
	offset, err := strconv.ParseUint(number, 10, 63) // as the tables keep it
	return epoch, offset, err == nil && len(epoch) <= maxEpochName
}
