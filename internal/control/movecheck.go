package control

import (
	"fmt"
	"strings"
)

const (
	// CallMigrateCompare begins the comparison that a commit asks for, or finds it: MoveCompare → MoveCheck ; to the target,
	// returns at once.
	CallMigrateCompare = "migrate.compare"
	// CallMigrateDigests asks a sealed source what it holds: DigestsAsked → Digests ; target to source.
	CallMigrateDigests = "migrate.digests"
)

// MoveCompare asks for the comparison of a filled move. Try tells the commits of a move apart: each has one of its own.
type MoveCompare struct {
	ID  string `json:"id"`
	Try int    `json:"try"`
}

// States of a MoveCheck.
const (
	CheckRunning   = "running"
	CheckSame      = "same"
	CheckDifferent = "different"
	CheckSkipped   = "skipped" // not made: Reason says why
)

// MaxPlaces is how many places a MoveCheck lists.
const MaxPlaces = 256

// MoveCheck is the comparison of source and target of a move, as of the cut, that a commit makes before it lets go of the source.
type MoveCheck struct {
	Try        int    `json:"try"`
	State      string `json:"state"`
	TotalBytes int64  `json:"total_bytes"` // of all volumes
	DoneBytes  int64  `json:"done_bytes"`
	// WrittenBytes is what hosts have written to since the cut, in whole blocks: it cannot be compared.
	WrittenBytes int64 `json:"written_bytes"`
	// Places, DifferentBytes count what differs, or could not be read; Different lists the first MaxPlaces places, on the target's
	// volumes. Unreadable is the answer of a disk to the last that could not be read.
	Places         int64          `json:"places"`
	DifferentBytes int64          `json:"different_bytes"`
	Different      []VerifyExtent `json:"different"`
	Unreadable     string         `json:"unreadable"`
	Accepted       bool           `json:"accepted"` // by command: the differences do not keep the source
	Reason         string         `json:"reason"`
}

// Passed says that a commit need not wait for it, or end for it, any more.
func (c *MoveCheck) Passed() bool {
	if c == nil {
		return false
	}
	switch c.State {
	case CheckSame, CheckSkipped:
		return true
	case CheckDifferent:
		return c.Accepted
	}
	return false
}

// Failed says that a commit has ended for it.
func (c *MoveCheck) Failed() bool { return c != nil && c.State == CheckDifferent && !c.Accepted }

// Add notes a place that differs; places come in order, and one that goes on is one.
func (c *MoveCheck) Add(e VerifyExtent, next bool) {
	c.DifferentBytes += e.Length
	if next {
		if c.Places == int64(len(c.Different)) {
			c.Different[c.Places-1].Length += e.Length
		}
		return
	}
	if c.Places++; c.Places <= MaxPlaces {
		c.Different = append(c.Different, e)
	}
}

// Differs is what was found in words, n places of it, and, unless it is accepted, what can be done.
func Differs(id, source, target string, c *MoveCheck, n int) string {
	s := fmt.Sprintf("migration %s: %s differs from what %s had at the cut: %d bytes in %d places (%s)", id, target, source,
		c.DifferentBytes, c.Places, c.List(n))
	if c.Accepted {
		return s + "; accepted by command"
	}
	return s + fmt.Sprintf("; %s is kept. `gantline migrate commit %s` compares anew, `gantline migrate commit %s "+
		"--accept-differences` lets go of %s all the same", source, id, id, source)
}

// List is the first n places in words.
func (c *MoveCheck) List(n int) string {
	var list []string
	for _, e := range c.Different[:min(n, len(c.Different))] {
		list = append(list, fmt.Sprintf("%s: %d bytes at %d", e.Volume, e.Length, e.Offset))
	}
	if left := c.Places - int64(len(list)); left > 0 {
		list = append(list, fmt.Sprintf("and %d places more", left))
	}
	if c.Unreadable != "" {
		list = append(list, "not all could be read: "+c.Unreadable)
	}
	return strings.Join(list, "; ")
}

// DigestsAsked names an extent of a moved volume, at most 1 MiB of it.
type DigestsAsked struct {
	ID     string `json:"id"`
	Number uint16 `json:"number"`
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
}

// Digests are 16 bytes for each 64 KiB of what was asked for, as of the cut; or Error, if the disk does not give it.
type Digests struct {
	Sums  []byte `json:"sums"`
	Error string `json:"error"`
}
