package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// figures are what a run has measured.
type figures struct {
	seed                               uint64
	baselineFrom, attackFrom, attackTo time.Time

	// at the beginning and the end of the baseline, at the end of the attack, and
	// when it is over
	start, baseline, during, after usage
	attacked                       attackReport
	crowd                          int // members of the square, at the end of the attack

	recovered            int      // messages that people with resume have
	keptWanted, keptLost int      // messages that histories must hold
	lossy                []string // topics that lack some

	lines  []line
	notes  []string
	faults []string
}

// line is a figure, before and during the attack, with its limit.
type line struct {
	name, baseline, attack, limit string
	exceeded                      bool
}

func (f *figures) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-34s %12s %12s %12s\n", "", "baseline", "attack", "limit")
	for _, l := range f.lines {
		mark := ""
		if l.exceeded {
			mark = "  exceeded"
		}
		b.WriteString(strings.TrimRight(fmt.Sprintf("%-34s %12s %12s %12s%s", l.name, l.baseline, l.attack, l.limit, mark), " ") + "\n")
	}
	for _, note := range f.notes {
		b.WriteString(note + "\n")
	}
	b.WriteString(f.attacked.String())
	fmt.Fprintf(&b, "%d faults (repeat with -seed %d)\n", len(f.faults), f.seed)
	for _, fault := range f.faults {
		b.WriteString("  " + fault + "\n")
	}
	return b.String()
}

// The limits of time, and in lenient runs, which are there for what does not
// depend on the machine.
const (
	slowdown = 3                    // the p99 of messages may be so many times that of the baseline
	floor    = 5 * time.Millisecond // a smaller p99 of the baseline counts as this
	told     = time.Second          // a revocation

	lenientLatency = 5 * time.Second
	lenientTold    = 10 * time.Second
)

// check fills in the lines and the faults.
func (r *abuse) check() {
	f := &r.figures
	f.seed = r.options.seed
	r.checkLatencies()
	r.checkLosses()
	r.checkKept()
	r.checkUsage()

	t := r.truth
	t.mu.Lock()
	defer t.mu.Unlock()
	f.faults = t.faults
	if t.left > 0 {
		f.faults = append(f.faults, fmt.Sprintf("and %d more", t.left))
	}
}

// line adds a figure, and a fault if it is exceeded.
func (r *abuse) line(l line) {
	r.lines = append(r.lines, l)
	if l.exceeded {
		r.truth.fault("%s: %s, the limit is %s", l.name, l.attack, l.limit)
	}
}

func (r *abuse) checkLatencies() {
	before := r.truth.between(r.baselineFrom, r.attackFrom)
	during := r.truth.between(r.attackFrom.Add(warmUp), r.attackTo)
	for _, kind := range slices.Sorted(maps.Keys(during)) {
		was, is := percentile(before[kind], 99), percentile(during[kind], 99)
		limit := slowdown * max(was, floor)
		if r.lenient {
			limit = lenientLatency
		}
		judged := !r.isBusy()
		r.lines = append(r.lines, line{name: fmt.Sprintf("messages of %s/, p50", kind), baseline: short(percentile(before[kind], 50)), attack: short(percentile(during[kind], 50))})
		r.line(line{name: fmt.Sprintf("messages of %s/, p99", kind), baseline: short(was), attack: short(is), limit: short(limit), exceeded: judged && is > limit})
		r.lines = append(r.lines, line{name: fmt.Sprintf("messages of %s/, most", kind), baseline: short(percentile(before[kind], 100)), attack: short(percentile(during[kind], 100))})
	}
	if len(before) == 0 || len(during) < len(before) {
		r.truth.fault("no messages were measured: %d kinds before the attack, %d during it", len(before), len(during))
	}
}

func (r *abuse) checkLosses() {
	var told99, wrote, before, wroteBefore time.Duration
	count := 0
	for _, l := range r.loser.losses {
		switch {
		case l.at.Before(r.attackFrom):
			before, wroteBefore = max(before, l.told), max(wroteBefore, l.wrote)
		default:
			count++
			told99, wrote = max(told99, l.told), max(wrote, l.wrote)
		}
	}
	limit := told
	if r.lenient {
		limit = lenientTold
	}
	r.line(line{name: "revocation told after, most", baseline: short(before), attack: short(told99), limit: short(limit), exceeded: told99 > limit})
	r.lines = append(r.lines, line{name: "write that takes access, most", baseline: short(wroteBefore), attack: short(wrote)})
	if count == 0 {
		r.truth.fault("no revocation was measured during the attack")
	}
	r.notes = append(r.notes, fmt.Sprintf("%d revocations during the attack", count))
}

func (r *abuse) checkKept() {
	r.line(line{name: "messages lost of histories", attack: fmt.Sprintf("%d of %d", r.keptLost, r.keptWanted), limit: "0", exceeded: r.keptLost > 0})
	if n := len(r.lossy); n > 0 {
		r.truth.fault("%d topics lack messages of their histories, such as %s", n, strings.Join(r.lossy[:min(n, 5)], ", "))
	}
	r.notes = append(r.notes, fmt.Sprintf("%d messages received or recovered by %d people with resume", r.recovered, len(r.people)))
	if t := r.attacked.Kinds[duplicates]; t != nil && t.Taken > 0 {
		r.truth.fault("%d messages with duplicate keys were taken", t.Taken)
	}
	if failed := r.attacked.failed(); failed > 0 {
		r.truth.fault("%d requests of the attackers were answered with a status of 5xx, such as %v", failed, r.attacked.Failures)
	}
}

func percentile(list []time.Duration, percent int) time.Duration {
	if len(list) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(list))
	return sorted[min(len(sorted)-1, len(sorted)*percent/100)]
}

func short(d time.Duration) string {
	if d < 10*time.Millisecond {
		return d.Round(10 * time.Microsecond).String()
	}
	return d.Round(time.Millisecond).String()
}

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
