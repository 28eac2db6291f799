package topics

import (
	"cmp"
	"container/list"
	"slices"
	"strings"
	"time"
)

// topicLog is the history of one topic, guarded by its shard's lock. It exists
// while the topic keeps something, in memory or on the disk.
//
// Every start of the server begins an epoch, in which the offsets go on. After
// a clean stop no message is missing between the two; after another one some
// may be. A log that was dropped starts at 1 again, in another epoch. The epochs
// of a directory have greater and greater names, so known positions are ordered
// by epoch and offset.
type topicLog struct {
	topic string
	chain *chain
	epoch string
	begun string // the epoch in which it began
	last  uint64 // the newest offset
	first uint64 // the oldest that is kept, or last+1

	// ended says what was the end of the epoch before: a reason of a gap, or
	// nothing if no message can be missing between the two.
	ended string

	// entries are those in memory: consecutive up to last, without a hole. The
	// ones before, from first on, are on the disk only.
	entries []*entry

	bytes   int           // of the entries
	kept    int           // bytes of all that is kept, also on the disk
	newest  time.Time     // when the newest message was sent
	owner   owner         // who began the topic through the API
	writers map[owner]int // bytes of all that is kept, by sender, as far as known
	charges []charge      // changes of that which history.account has not seen
	saved   uint64        // the write of its newest entry, as disk.add has numbered it

	used   *list.Element // in history.order
	cached *list.Element // in history.cached, while there are entries
}

// inMemory is the oldest offset that is in memory, or the next one.
func (l *topicLog) inMemory() uint64 { return l.last + 1 - uint64(len(l.entries)) }

// whole reports whether all that is kept is in memory.
func (l *topicLog) whole() bool { return l.first >= l.inMemory() }

// count is how many messages are kept.
func (l *topicLog) count() int { return int(l.last + 1 - l.first) }

func (l *topicLog) append(e *entry, r retention) {
	l.last++
	e.epoch, e.offset = l.epoch, l.last
	e.message.Topic = l.topic // one copy for all
	l.entries = append(l.entries, e)
	l.bytes += e.size()
	l.kept += e.size()
	l.charge(e.message.owner, e.size())
	l.newest = e.message.Time
	l.prune(r, e.message.Time)
}

// prune drops what is beyond the bounds. The newest message always fits. Of
// messages that are on the disk only, it knows their number but not their age,
// and their size on average.
func (l *topicLog) prune(r retention, now time.Time) {
	if r.age > 0 && l.count() > 0 && now.Sub(l.newest) >= r.age {
		l.dropBefore(l.last + 1)
		return
	}
	if n := uint64(max(r.messages, 1)); l.last >= n && l.first < l.last+1-n {
		l.dropBefore(l.last + 1 - n)
	}
	for l.first < l.last && (l.kept > r.bytes || r.age > 0 && l.whole() && now.Sub(l.entries[0].message.Time) >= r.age) {
		l.dropBefore(l.first + 1)
	}
}

// dropBefore drops what is older than that offset.
func (l *topicLog) dropBefore(offset uint64) {
	if offset <= l.first {
		return
	}
	before := l.inMemory()
	if unread := before - min(l.first, before); unread > 0 {
		gone := min(offset, before) - l.first
		size := (l.kept - l.bytes) / int(unread) * int(gone)
		l.discharge(size)
		l.kept -= size
	}
	l.first = offset

	drop := 0
	for drop < len(l.entries) && l.entries[drop].offset < offset {
		e := l.entries[drop]
		if e.loaded {
			l.discharge(e.size())
		} else {
			l.charge(e.message.owner, -e.size())
		}
		l.bytes -= e.size()
		l.kept -= e.size()
		drop++
	}
	if len(l.entries) == drop {
		l.entries = nil
	} else if drop > 0 {
		clear(l.entries[:drop])
		l.entries = l.entries[drop:]
		if cap(l.entries) > 4*len(l.entries)+64 {
			l.entries = slices.Clone(l.entries)
		}
	}
	if l.whole() {
		l.kept = l.bytes // what was estimated is exact now
	}
}

// charge is a change of what a log keeps of a sender.
type charge struct {
	owner owner
	bytes int
}

// charge counts bytes for a sender. What the server sends counts for nobody.
func (l *topicLog) charge(o owner, bytes int) {
	if o == "" {
		return
	}
	if l.writers == nil {
		l.writers = map[owner]int{}
	}
	if l.writers[o] += bytes; l.writers[o] <= 0 {
		bytes -= l.writers[o]
		delete(l.writers, o)
	}
	l.charges = append(l.charges, charge{o, bytes})
}

// discharge takes back what is no longer kept of senders who are not known: of
// each its part.
func (l *topicLog) discharge(bytes int) {
	if l.kept <= 0 {
		return
	}
	for o, of := range l.writers {
		l.charge(o, -int(int64(of)*int64(min(bytes, l.kept))/int64(l.kept)))
	}
}

// forgetEntries leaves the entries to the disk.
func (l *topicLog) forgetEntries() {
	l.entries, l.bytes = nil, 0
}

// prepend takes over entries that were read from the disk, in their order.
// Those that are pruned by now, or in memory already, are left out. What the
// disk does not have any more is not kept either.
func (l *topicLog) prepend(read []*entry) {
	before := l.inMemory()
	read = slices.DeleteFunc(read, func(e *entry) bool { return e.offset < l.first || e.offset >= before })
	// consecutive up to what is in memory
	from := len(read)
	for from > 0 && read[from-1].offset == before-1 {
		from--
		before--
	}
	read = read[from:]
	for _, e := range read {
		e.message.Topic, e.loaded = l.topic, true
		l.bytes += e.size()
	}
	l.entries = append(read, l.entries...)
	l.first = l.inMemory()
	l.kept = l.bytes
}

// after returns the entries that come after a position: all of them, if the
// log knows of no such position. (A server's clock may have gone back.)
func (l *topicLog) after(epoch string, offset uint64) []*entry {
	if epoch > l.epoch || epoch == l.epoch && offset > l.last {
		return l.entries
	}
	i, _ := slices.BinarySearchFunc(l.entries, entry{epoch: epoch, offset: offset + 1}, func(e *entry, at entry) int {
		return cmp.Or(strings.Compare(e.epoch, at.epoch), cmp.Compare(e.offset, at.offset))
	})
	return l.entries[i:]
}

// needs reports whether entries after a position are on the disk only.
func (l *topicLog) needs(epoch string, offset uint64) bool {
	return !l.whole() && (!l.linked(epoch, l.epoch) || offset+1 < l.inMemory())
}

// at returns the entry of an offset, or nil if it is not in memory.
func (l *topicLog) at(offset uint64) *entry {
	if offset < l.inMemory() || offset > l.last {
		return nil
	}
	return l.entries[offset-l.inMemory()]
}

// sentWith returns the entry with an idempotency key, or nil. A log may be nil.
func (l *topicLog) sentWith(key repeatKey) *entry {
	if l == nil {
		return nil
	}
	for _, e := range slices.Backward(l.entries) {
		if e.message.repeat == key {
			return e
		}
	}
	return nil
}

// linked reports whether no message is missing between two epochs.
func (l *topicLog) linked(a, b string) bool { return l.chain.linked(a, b, l.begun) }

// knows reports whether the log lived in an epoch.
func (l *topicLog) knows(epoch string) bool {
	_, known := l.chain.segment(epoch, l.begun)
	return known || epoch == l.epoch
}

// lastOf is the position before the last n messages. Its epoch is empty where
// only the disk knows it.
func (l *topicLog) lastOf(n int) (epoch string, offset uint64) {
	n = min(n, l.count())
	if n == 0 {
		return l.epoch, l.last
	}
	offset = l.last - uint64(n)
	if first := l.at(offset + 1); first != nil {
		return first.epoch, offset
	}
	return "", offset
}

// page returns a part of the log, which has to be whole. The options are valid.
func (l *topicLog) page(options HistoryOptions, limit int) (page HistoryPage, entries []*entry) {
	page.Last = messageID(l.epoch, l.last)
	if n := len(l.entries); n > 0 {
		page.Last = l.entries[n-1].id()
	}

	switch {
	case options.Since != "":
		epoch, offset, _ := parseMessageID(options.Since)
		// messages may be missing at the end of another epoch
		page.Recovered = l.linked(epoch, l.epoch) && offset+1 >= l.first && offset <= l.last
		entries = l.entries
		if l.knows(epoch) {
			entries = l.after(epoch, offset)
		}
		entries = entries[:min(len(entries), limit)]

	case options.Before != "":
		epoch, offset, _ := parseMessageID(options.Before)
		after := l.after(epoch, max(offset, 1)-1)
		page.Recovered = len(after) > 0 && after[0].epoch == epoch && after[0].offset == offset
		if page.Recovered {
			entries = l.entries[:len(l.entries)-len(after)]
			entries = entries[max(0, len(entries)-limit):]
		}

	default:
		page.Recovered = true
		entries = l.entries[max(0, len(l.entries)-limit):]
	}
	return page, slices.Clone(entries)
}
