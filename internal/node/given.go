package node

import (
	"slices"

	"gantline/internal/block"
	"gantline/internal/wire"
)

// A gateway that is cut off from the manager may lead hosts to a volume long after its group has gone elsewhere: after the volume was
// deleted, or when there is another one of its name, which is nobody's of the group. What was given up is therefore remembered beside the
// volumes, and who comes for the group is sent on.

// givenUp is a volume that a group has had here, and who serves in its place.
type givenUp struct {
	Volume string            `json:"volume"`
	Group  string            `json:"group"`
	To     *block.MovedError `json:"to"`
}

// maxGiven is how many are remembered; the oldest is forgotten first.
const maxGiven = 256

// give notes what a group gives up here.
func (d *durable) give(group, volume string, to *block.MovedError) {
	given := slices.DeleteFunc(slices.Clone(d.Given), func(g givenUp) bool { return g.Group == group && g.Volume == volume })
	d.Given = append(given[max(0, len(given)+1-maxGiven):], givenUp{Volume: volume, Group: group, To: to})
}

// givenTo is who serves a volume that a client takes for one of a group, which has given it up here; nil: it has not.
func (n *Node) givenTo(p *wire.IOParams) *block.MovedError {
	d := n.state.view()
	if p.Group == "" || d.owner(p.Volume) == p.Group {
		return nil
	}
	for _, g := range d.Given {
		if g.Group == p.Group && g.Volume == p.Volume {
			to := *g.To
			if addr := n.addressOf(to.Node); addr != "" {
				to.Address = addr
			}
			return &to
		}
	}
	return nil
}
