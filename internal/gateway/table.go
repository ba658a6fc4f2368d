package gateway

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"gantline/internal/route"
	"gantline/internal/statefile"
)

// Host may open a virtual volume; Name is an IP address.
type Host struct {
	Name     string `json:"name"`
	ReadOnly bool   `json:"read_only"`
}

// VVol is a virtual volume and its route.
type VVol struct {
	Name     string `json:"name"`
	Size     int64  `json:"size"`   // bytes
	Volume   string `json:"volume"` // its name at the node
	Node     string `json:"node"`
	Address  string `json:"address"`
	Group    string `json:"group"` // whose epoch it is; "": in none
	Epoch    uint64 `json:"epoch"`
	ReadOnly bool   `json:"read_only"` // served by a secondary
	InFlight string `json:"in_flight"` // route.Policy of the latest switch to another volume
	Hosts    []Host `json:"hosts"`     // none: all on loopback, nobody elsewhere
}

func (v VVol) route() route.Route {
	return route.Route{Node: v.Node, Address: v.Address, Volume: v.Volume, Group: v.Group, Epoch: v.Epoch}
}

// policyFrom is what becomes of requests in flight when this route follows old. The policy is that of the latest switch to
// another volume: a node that has come back at another address is none, and no reason for an error.
func (v VVol) policyFrom(old VVol) route.Policy {
	if v.Node == old.Node && v.Volume == old.Volume {
		return route.Finish
	}
	p, _ := route.ParsePolicy(v.InFlight) // checked
	return p
}

// Table is what a gateway routes by.
type Table struct {
	Revision uint64 `json:"revision"`
	VVols    []VVol `json:"vvols"`
}

// maxVVols bounds a table.
const maxVVols = 4096

func (t Table) check() error {
	if len(t.VVols) > maxVVols {
		return fmt.Errorf("table of %d virtual volumes, limit %d", len(t.VVols), maxVVols)
	}
	seen := map[string]bool{}
	for _, v := range t.VVols {
		if v.Name == "" || v.Size < 0 || seen[v.Name] {
			return fmt.Errorf("table has a bad entry: virtual volume %q of %d bytes", v.Name, v.Size)
		}
		if _, err := route.ParsePolicy(v.InFlight); err != nil {
			return fmt.Errorf("virtual volume %s: %w", v.Name, err)
		}
		seen[v.Name] = true
	}
	return nil
}

// access tells whether a peer may open the volume, and whether only to read. Peers on a unix socket count as
// 127.0.0.1.
func (v VVol) access(peer netip.Addr) (readOnly, ok bool) {
	if len(v.Hosts) == 0 {
		return v.ReadOnly, peer.IsLoopback()
	}
	for _, h := range v.Hosts {
		if a, err := netip.ParseAddr(h.Name); err == nil && a.Unmap() == peer {
			return v.ReadOnly || h.ReadOnly, true
		}
	}
	return false, false
}

func peerAddr(a net.Addr) netip.Addr {
	if h, ok := a.(*hostAddr); ok {
		a = h.Addr
	}
	if a, ok := a.(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap()
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

// stored is the gateway's state on disk, kept twice.
type stored struct {
	Name    string `json:"name"`
	Install string `json:"install"` // tells this installation from another of the same name
	Synced  bool   `json:"synced"`  // Table came from a manager
	Table   Table  `json:"table"`
}

// openState reads the state, or makes a new one.
func openState(dir, name string, log *slog.Logger) (*statefile.File, stored, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, stored{}, err
	}
	file, body, repaired, err := statefile.Open(filepath.Join(dir, "gateway.state"))
	if err != nil {
		return nil, stored{}, err
	}
	if repaired != "" {
		log.Warn("gateway state repaired", "cause", repaired)
	}
	st := stored{Name: name}
	if body == nil {
		var id [16]byte
		_, _ = rand.Read(id[:]) // never fails
		st.Install = hex.EncodeToString(id[:])
		return file, st, save(file, st)
	}
	if err := json.Unmarshal(body, &st); err != nil {
		return nil, stored{}, fmt.Errorf("gateway state in %s: %w", dir, err)
	}
	if st.Name != name {
		return nil, stored{}, fmt.Errorf("data directory %s belongs to gateway %q, not %q: start it under that name or give another --data-dir",
			dir, st.Name, name)
	}
	if err := st.Table.check(); err != nil {
		return nil, stored{}, fmt.Errorf("gateway state in %s: %w", dir, err)
	}
	return file, st, nil
}

func save(file *statefile.File, st stored) error {
	body, err := json.Marshal(st)
	if err != nil {
		return err
	}
	return file.Save(body)
}
