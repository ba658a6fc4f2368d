package control

import "time"

// Drain moves every group whose primary is on a node to another node. It is an operation of the manager; its key is its ID.
type Drain struct {
	ID       string      `json:"id"` // drain-NODE
	Node     string      `json:"node"`
	To       string      `json:"to"`
	Parallel int         `json:"parallel"`
	Commit   bool        `json:"commit"`
	Items    []DrainItem `json:"items"`
	Phase    string      `json:"phase"`
	Begun    time.Time   `json:"begun"`
	Error    string      `json:"error"`
	Kind     Kind        `json:"kind"` // of the error
}

// DrainItem is one group of a drain, or a volume in no group.
type DrainItem struct {
	Object    string `json:"object"`
	Migration string `json:"migration"` // "": not begun
	Phase     string `json:"phase"`
	Error     string `json:"error"`
}

// Phases of a drain and of its items.
const (
	DrainWaiting = "waiting" // item
	DrainMoving  = "moving"
	DrainDone    = "done"
	DrainFailed  = "failed"
)

// DrainID is the ID of a node's drain: there is one at a time.
func DrainID(node string) string { return "drain-" + node }

// DrainRequest begins a drain. Parallel 0: two moves at a time, or, of a drain under way, as many as before.
type DrainRequest struct {
	To       string `json:"to"`
	Parallel int    `json:"parallel,omitempty"`
	Commit   bool   `json:"commit,omitempty"`
}
