package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// result has the medians of a scenario for each server.
type result struct {
	scenario scenario
	metrics  map[kind][]metric
}

func run(o options, out io.Writer) ([]result, error) {
	var results []result
	for _, s := range scenarios() {
		if !o.scenario.MatchString(s.name) {
			continue
		}
		measured := map[kind][][]metric{}
		for range o.rounds {
			for _, k := range s.kinds {
				metrics, err := runOnce(o, s, k)
				if err != nil {
					return results, fmt.Errorf("%s with %s: %w", s.name, k, err)
				}
				measured[k] = append(measured[k], metrics)
			}
		}
		r := result{scenario: s, metrics: map[kind][]metric{}}
		for k, rounds := range measured {
			r.metrics[k] = medians(rounds)
		}
		results = append(results, r)
		if _, err := io.WriteString(out, r.table()); err != nil {
			return results, err
		}
	}
	return results, nil
}

func runOnce(o options, s scenario, k kind) ([]metric, error) {
	l, err := openLab(o, s.name, k)
	if err != nil {
		return nil, err
	}
	defer l.close()
	return s.run(l)
}

// medians of the same metrics, measured several times. What must not happen at
// all is summed up instead.
func medians(rounds [][]metric) []metric {
	if len(rounds) == 0 {
		return nil
	}
	combined := slices.Clone(rounds[0])
	for i := range combined {
		var values []float64
		sum := 0.0
		for _, r := range rounds {
			values = append(values, r[i].value)
			sum += r[i].value
		}
		slices.Sort(values)
		combined[i].value = values[len(values)/2]
		if faults[combined[i].name] {
			combined[i].value = sum
		}
	}
	return combined
}

// faults are the metrics that count what must not happen.
var faults = map[string]bool{"lost": true, "out of order": true, "subscribers with another order": true}

func (r result) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n## %s\n\n%s.\n\n|", r.scenario.name, capitalised(r.scenario.about))
	for _, k := range r.scenario.kinds {
		fmt.Fprintf(&b, " | %s", k)
	}
	first, last := r.scenario.kinds[0], r.scenario.kinds[len(r.scenario.kinds)-1]
	fmt.Fprintf(&b, " | %s / %s |\n|---|%s---:|\n", last, first, strings.Repeat("---:|", len(r.scenario.kinds)))

	for _, m := range r.metrics[last] {
		fmt.Fprintf(&b, "| %s", m.name)
		for _, k := range r.scenario.kinds {
			fmt.Fprintf(&b, " | %s", r.cell(k, m.name))
		}
		base, ok := find(r.metrics[first], m.name)
		ok = ok && first != last
		if ratio := m.value / base; ok && base != 0 && !math.IsNaN(ratio) {
			fmt.Fprintf(&b, " | %.2f |\n", ratio)
		} else {
			b.WriteString(" | |\n")
		}
	}
	for _, k := range r.scenario.kinds {
		if share, ok := find(r.metrics[k], "load generator's CPU / server's"); ok && share > 1 {
			if busy, _ := find(r.metrics[k], "machine busy, %"); busy > 90 {
				fmt.Fprintf(&b, "\nWith %s the load generator is the bottleneck.\n", k)
			}
		}
	}
	return b.String()
}

func (r result) cell(k kind, name string) string {
	v, ok := find(r.metrics[k], name)
	if !ok {
		if v, _ := find(r.metrics[k], hangs); v > 0 {
			return "hangs"
		}
		return ""
	}
	switch {
	case v == 0:
		return "0"
	case math.Abs(v) < 10:
		return fmt.Sprintf("%.2f", v)
	case math.Abs(v) < 100:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.0f", v)
	}
}

func find(metrics []metric, name string) (float64, bool) {
	for _, m := range metrics {
		if m.name == name {
			return m.value, true
		}
	}
	return 0, false
}

func capitalised(s string) string { return strings.ToUpper(s[:1]) + s[1:] }
