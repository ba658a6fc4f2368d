package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// row is one line of the result: a figure of ours beside a peer's, or beside a fixed limit.
type row struct {
	name        string
	ours, peer  string // with their units
	ratio       float64
	goal        string
	checked, ok bool
}

type table struct {
	out  io.Writer
	rows []row
}

func newTable(out io.Writer) *table { return &table{out: out} }

// atLeast adds a ratio that must not fall below the goal; goal 0: only printed.
func (t *table) atLeast(name, unit string, ours, peer float64, peerName string, goal float64) {
	r := row{name: name, ours: figure(ours, unit), peer: figure(peer, unit) + " " + peerName, ratio: ours / peer}
	if goal > 0 {
		r.goal, r.checked, r.ok = fmt.Sprintf("≥ %.2f", goal), true, ours/peer >= goal
	}
	t.rows = append(t.rows, r)
}

// atMost adds a ratio that must not rise above the goal; goal 0: only printed.
func (t *table) atMost(name, unit string, ours, peer float64, peerName string, goal float64) {
	r := row{name: name, ours: figure(ours, unit), peer: figure(peer, unit) + " " + peerName, ratio: ours / peer}
	if goal > 0 {
		r.goal, r.checked, r.ok = fmt.Sprintf("≤ %.2f", goal), true, ours/peer <= goal
	}
	t.rows = append(t.rows, r)
}

// below adds a figure with a fixed limit.
func (t *table) below(name, unit string, value, limit float64) {
	t.rows = append(t.rows, row{
		name: name, ours: figure(value, unit), goal: "≤ " + figure(limit, unit), checked: true, ok: value <= limit,
	})
}

// absolute adds a figure without a goal.
func (t *table) absolute(name, unit string, value float64) {
	t.rows = append(t.rows, row{name: name, ours: figure(value, unit)})
}

// fail notes a case that could not be measured, which is a goal missed.
func (t *table) fail(name string, err error) {
	progress("%s: %v", name, err)
	first, _, _ := strings.Cut(err.Error(), "\n")
	t.rows = append(t.rows, row{name: name, ours: "failed", goal: first, checked: true})
}

// print writes the table; false: a goal was missed.
func (t *table) print() bool {
	w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "case\tfigure\tbeside\tratio\tgoal\t")
	good := true
	for _, r := range t.rows {
		verdict, ratio := "", ""
		if r.checked {
			verdict = "ok"
			if !r.ok {
				verdict, good = "MISSED", false
			}
		}
		if r.peer != "" {
			ratio = fmt.Sprintf("%.2f", r.ratio)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", r.name, r.ours, r.peer, ratio, r.goal, verdict)
	}
	w.Flush()
	return good
}

func figure(v float64, unit string) string {
	digits := 0
	switch {
	case v < 10:
		digits = 2
	case v < 100:
		digits = 1
	}
	return fmt.Sprintf("%.*f %s", digits, v, unit)
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}
