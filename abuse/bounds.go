package main

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// The defaults of the config that the bounds need, and what one of a kind takes
// at most. docs/operating.md has the same figures.
const (
	queueBytes              = 1 << 20
	connectionSubscriptions = 500
	logLines                = 60 // a minute

	subscriptionBytes = 4 << 10 // its key has up to 2,500
	positionBytes     = 1 << 10
	idempotencyBytes  = 512
	requestBytes      = 4 // times the body

	// a message of each publisher may be beyond a limit until it has made room
	underWay = (2*connections + rooms + 3) * 64 << 10

	// PocketBase lets the write-ahead log have that much
	writeAheadBytes = 200_000_000

	// strayGoroutines are those of idle connections and of people who come and go
	strayGoroutines = 20
)

// raceMemory is how many times the memory the race detector takes, with which
// the tests run.
const raceMemory = 10

// memoryBound is what the server may take beside what it takes without the
// attack: twice what is alive, as the garbage collector lets the heap grow so
// far.
func memoryBound() int64 {
	c := limits()
	streams := int64(2*connections + rooms*perRoom + 3)
	alive := int64(c.HistoryTotalBytes) +
		streams*(queueBytes+connectionSubscriptions*subscriptionBytes) +
		2*int64(c.MaxPositionsPerSubscriber)*positionBytes +
		2*int64(c.MaxIdempotencyKeysPerSender)*idempotencyBytes +
		requestBytes*(hugeText+2*connections<<20)
	return 2 * alive
}

// diskBound is what auxiliary.db may grow by: the histories and as much again as
// a quarter for their index and half-filled pages, and the log of the app.
func diskBound(logBytes int64) int64 {
	return int64(limits().HistoryDiskBytes)*5/4 + 2*logBytes
}

func (r *abuse) checkUsage() {
	before, after := r.baseline, r.after
	r.mu.Lock()
	peak := r.peak
	r.mu.Unlock()

	limit := before.RSS + memoryBound()
	if r.lenient {
		limit *= raceMemory
	}
	most := max(peak.RSS, after.PeakRSS)
	r.line(line{name: "resident memory, most", baseline: mib(before.RSS), attack: mib(most), limit: mib(limit), exceeded: most > limit})
	limit = before.Heap + memoryBound()/2
	r.line(line{name: "live heap, once it is over", baseline: mib(before.Heap), attack: mib(after.Heap), limit: mib(limit), exceeded: after.Heap > limit})

	limit = before.Disk + diskBound(after.LogBytes)
	disk := max(peak.Disk, after.Disk)
	r.line(line{name: "auxiliary.db, most", baseline: mib(before.Disk), attack: mib(disk), limit: mib(limit), exceeded: disk > limit})
	wal := max(peak.WriteAhead, after.WriteAhead)
	r.line(line{name: "auxiliary.db-wal, most", baseline: mib(before.WriteAhead), attack: mib(wal), limit: mib(writeAheadBytes), exceeded: wal > writeAheadBytes})

	minutes := int(time.Since(r.baselineFrom)/time.Minute) + 2 // in which the run may have a part
	allowed := minutes * (logLines + 5)
	lines := after.Lines - before.Lines
	r.line(line{name: "lines in the log", baseline: fmt.Sprint(before.Lines), attack: fmt.Sprint(lines), limit: fmt.Sprint(allowed), exceeded: lines > allowed})
	r.line(line{name: "longest line, bytes", baseline: fmt.Sprint(before.Longest), attack: fmt.Sprint(after.Longest), limit: fmt.Sprint(longestLine), exceeded: after.Longest > longestLine})
	r.lines = append(r.lines, line{name: "PocketBase's own lines", baseline: fmt.Sprint(before.OtherRows), attack: fmt.Sprint(after.OtherRows - before.OtherRows)})

	goroutines := before.Goroutines + strayGoroutines
	r.line(line{name: "goroutines, once it is over", baseline: fmt.Sprint(before.Goroutines), attack: fmt.Sprint(after.Goroutines), limit: fmt.Sprint(goroutines), exceeded: after.Goroutines > goroutines})

	// each connection is one member, apart from the storms, which are elsewhere
	members := rooms * perRoom
	if t := r.attacked.Kinds[connects]; t != nil {
		members += t.Taken
	}
	r.line(line{name: "members of " + square, attack: fmt.Sprint(r.crowd), limit: fmt.Sprint(members), exceeded: r.crowd > members})

	r.checkProcessors()
	r.checkStats(before.Stats, peak.Stats)
}

// checkStats adds what Plugin.Stats has counted.
func (r *abuse) checkStats(before, peak map[string]any) {
	c := limits()
	bounds := map[string]int64{
		"histories":        int64(c.MaxTopics),
		"historyBytes":     int64(c.HistoryTotalBytes) + underWay,
		"historyDiskBytes": int64(c.HistoryDiskBytes) + underWay,
		"positions":        int64(c.MaxPositions),
		"historyLag":       int64(killLoses / time.Millisecond),
	}
	if r.lenient {
		bounds["historyLag"] *= 30
	}
	for _, name := range slices.Sorted(maps.Keys(peak)) {
		was, _ := before[name].(float64)
		is, _ := peak[name].(float64)
		l := line{name: "Stats, most " + name, baseline: fmt.Sprint(int64(was)), attack: fmt.Sprint(int64(is))}
		if bound, bounded := bounds[name]; bounded {
			l.limit, l.exceeded = fmt.Sprint(bound), int64(is) > bound
		}
		r.line(l)
	}
}

// checkProcessors adds how many processors were busy, and with what.
func (r *abuse) checkProcessors() {
	baseline, attack := r.attackFrom.Sub(r.baselineFrom), r.attackTo.Sub(r.attackFrom)
	before, during := r.othersBusy()
	r.lines = append(r.lines,
		line{name: "processors of the server", baseline: cores((r.baseline.CPU - r.start.CPU).Seconds() / baseline.Seconds()), attack: cores((r.during.CPU - r.baseline.CPU).Seconds() / attack.Seconds())},
		line{name: "processors of the attackers", attack: cores(r.attacked.CPU.Seconds() / attack.Seconds())},
		line{name: "processors of all others", baseline: cores(before), attack: cores(during)},
	)
	if r.isBusy() {
		r.notes = append(r.notes, "The machine is busy with something else, so the times of messages are not judged.")
	}
}

// othersBusy returns how many processors were busy with what is not of this
// program, before and during the attack.
func (r *abuse) othersBusy() (before, during float64) {
	others := func(from, to usage, attackers, took time.Duration) float64 {
		rest := to.Machine - from.Machine - (to.CPU - from.CPU) - (to.Own - from.Own) - attackers
		return max(0, rest.Seconds()/took.Seconds())
	}
	return others(r.start, r.baseline, 0, r.attackFrom.Sub(r.baselineFrom)), others(r.baseline, r.during, r.attacked.CPU, r.attackTo.Sub(r.attackFrom))
}

// busyElsewhere is from how many processors on what other processes do changes
// the times of messages. With two processors a half of one does.
const busyElsewhere = 0.5

func (r *abuse) isBusy() bool {
	before, during := r.othersBusy()
	return before > busyElsewhere || during > busyElsewhere
}

func cores(n float64) string { return fmt.Sprintf("%.2f", n) }

// killLoses is how much a kill of the server may lose.
const killLoses = 2 * time.Second

// longestLine is that of a line in the log: what clients choose is clipped.
const longestLine = 4 << 10
