package control

import "strings"

// LinkSettings say how one node sends to another: all groups that copy from the one to the other share them.
type LinkSettings struct {
	Limit       int64 `json:"limit"`       // bytes a second of all copy streams together; 0: none
	Connections int   `json:"connections"` // of each copy stream; 0 is 1
}

// Link is the way from one node to another, as it was set. Where nothing was set there is no record of it.
type Link struct {
	From string `json:"from"`
	To   string `json:"to"`
	LinkSettings
}

// MaxConnections bounds the connections of one copy stream.
const MaxConnections = 16

// LinkRequest changes a link; nil: as it is.
type LinkRequest struct {
	Limit       *int64 `json:"limit,omitempty"`
	Connections *int   `json:"connections,omitempty"`
}

// Apply returns s with the change made, or a usage error that names the flag.
func (r *LinkRequest) Apply(s LinkSettings) (LinkSettings, error) {
	if r.Limit != nil {
		if v := *r.Limit; v != 0 && (v < minLimit || v > maxAmount) {
			return s, Errorf(KindUsage, "--limit: %d bytes a second is outside %d to %d, and not 0", v, minLimit, maxAmount)
		}
		s.Limit = *r.Limit
	}
	if r.Connections != nil {
		if v := *r.Connections; v < 1 || v > MaxConnections {
			return s, Errorf(KindUsage, "--connections: %d is outside 1 to %d", v, MaxConnections)
		}
		s.Connections = *r.Connections
	}
	return s, nil
}

// LinkView is `link show`.
type LinkView struct {
	Name        string   `json:"name"` // FROM:TO
	From        string   `json:"from"`
	To          string   `json:"to"`
	Address     string   `json:"address"` // of the node at the other end
	State       *string  `json:"state"`   // "up", "down"; null: nothing is copied over it, or the node does not answer
	RTTMS       *float64 `json:"rtt_ms"`
	Connections int      `json:"connections"`
	Limit       int64    `json:"limit"`
	SentBytes   *int64   `json:"sent_bytes"` // by copy streams of the groups that now use it
	Groups      []string `json:"groups"`
}

// SplitLink takes FROM:TO apart and checks both halves.
func SplitLink(name string) (from, to string, err error) {
	from, to, ok := strings.Cut(name, ":")
	if !ok {
		return "", "", Errorf(KindUsage, "link %q: write it as FROM:TO, two nodes", name)
	}
	for _, n := range []string{from, to} {
		if err := CheckNode(n); err != nil {
			return "", "", err
		}
	}
	if from == to {
		return "", "", Errorf(KindUsage, "link %q: both ends are node %s", name, from)
	}
	return from, to, nil
}
