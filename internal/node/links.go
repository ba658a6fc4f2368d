package node

import (
	"gantline/internal/control"
	"gantline/internal/pace"
)

// link is what this node knows of its way to another node: all groups that copy to that node share it.
type link struct {
	limit *pace.Limiter
}

// linkTo returns the link to a node, with the settings that were recorded for it.
func (n *Node) linkTo(peer string) *link {
	limit := n.state.view().Links[peer].Limit
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.links[peer]
	if l == nil {
		l = &link{limit: pace.New()}
		l.limit.Set(limit)
		n.links[peer] = l
	}
	return l
}

// learnLinks records the settings of links from this node and puts them in force.
func (n *Node) learnLinks(links map[string]control.LinkSettings) error {
	for peer, s := range links {
		if n.state.view().Links[peer] != s {
			err := n.state.update(func(d *durable) error {
				if d.Links == nil {
					d.Links = map[string]control.LinkSettings{}
				}
				d.Links[peer] = s
				return nil
			})
			if err != nil {
				return err
			}
		}
		n.linkTo(peer).limit.Set(s.Limit)
	}
	return nil
}
