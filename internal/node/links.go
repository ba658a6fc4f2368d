package node

import (
	"sync/atomic"

	"gantline/internal/control"
	"gantline/internal/pace"
)

// link is what this node knows of its way to another node: all groups that copy to that node share it.
type link struct {
	limit       *pace.Limiter
	connections atomic.Int64 // of each stream
}

// linkTo returns the link to a node, with the settings that were recorded for it.
func (n *Node) linkTo(peer string) *link {
	set := n.state.view().Links[peer]
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.links[peer]
	if l == nil {
		l = &link{limit: pace.New()}
		l.limit.Set(set.Limit)
		l.connections.Store(int64(set.Connections))
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
		l := n.linkTo(peer)
		l.limit.Set(s.Limit)
		if old := l.connections.Swap(int64(s.Connections)); max(old, 1) != int64(max(s.Connections, 1)) {
			n.renewStreams(peer)
		}
	}
	return nil
}

// renewStreams has the streams to a node begin anew, with as many connections as its link has now.
func (n *Node) renewStreams(peer string) {
	for name, rec := range n.state.view().Groups {
		if rec.Spec.Group.Secondary != peer {
			continue
		}
		if g := n.group(name); g != nil {
			g.mu.Lock()
			snd := g.snd
			g.mu.Unlock()
			if snd != nil {
				snd.Renew()
			}
		}
	}
}
