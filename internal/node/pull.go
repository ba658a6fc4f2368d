package node

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"gantline/internal/control"
	"gantline/internal/receiver"
	"gantline/internal/sender"
	"gantline/internal/wire"
)

// pulls are the sources that a secondary asks for records, by node: those that it believes, both while a move is
// transitional, and those that it would believe if they opened their epoch. Which they are is looked at again and again,
// for they change with what arrives.
type pulls struct {
	g    *group
	wake chan struct{}

	mu    sync.Mutex
	going map[string]*pulling
}

type pulling struct {
	*receiver.Puller
	cancel context.CancelFunc
	done   chan struct{}
}

// pullLook is how often the set of sources is compared with who is asked.
const pullLook = 100 * time.Millisecond

func (p *pulls) run(ctx context.Context) error {
	defer p.ask(context.Background(), nil)
	tick := time.NewTicker(pullLook)
	defer tick.Stop()
	for {
		p.ask(ctx, p.sources())
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-p.wake:
		}
	}
}

// sources is empty in a group that is pushed.
func (p *pulls) sources() []string {
	if p.g.settings().Transfer != control.TransferPull {
		return nil
	}
	var nodes []string
	st := p.g.rcv.Status()
	if st.Err != nil {
		return nil
	}
	for _, s := range st.Sources {
		nodes = append(nodes, s.Epoch.Node)
	}
	for _, s := range st.Permitted {
		nodes = append(nodes, s.Epoch.Node)
	}
	slices.Sort(nodes)
	return slices.Compact(nodes)
}

// ask begins to ask those of nodes who are not asked yet, and leaves the others.
func (p *pulls) ask(ctx context.Context, nodes []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for node, one := range p.going {
		if !slices.Contains(nodes, node) {
			one.cancel()
			<-one.done
			delete(p.going, node)
		}
	}
	for _, node := range nodes {
		if p.going[node] == nil {
			p.going[node] = p.begin(ctx, node)
		}
	}
}

func (p *pulls) begin(ctx context.Context, node string) *pulling {
	n := p.g.n
	ctx, cancel := context.WithCancel(ctx)
	one := &pulling{cancel: cancel, done: make(chan struct{})}
	one.Puller = receiver.NewPuller(receiver.PullConfig{Receiver: p.g.rcv, Node: node, Logger: n.log,
		Hello: wire.Hello{Role: "node", Name: n.cfg.Name, Instance: n.instance, Group: p.g.name},
		Dial:  n.dialer(node)})
	go func() {
		defer close(one.done)
		one.Run(ctx)
	}()
	return one
}

// poke has the sources looked at now.
func (p *pulls) poke() {
	if p == nil {
		return
	}
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// blocked says why nothing is pulled from the sources that are believed; empty: streams are open, or it is pushed.
func (p *pulls) blocked(sources []receiver.Source) string {
	if p == nil {
		return ""
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var why []string
	for _, s := range sources {
		if one := p.going[s.Epoch.Node]; one != nil && one.Blocked() != "" {
			why = append(why, one.Blocked())
		}
	}
	return strings.Join(why, "; ")
}

// servePull answers a secondary that asks this node for records.
func (g *group) servePull(ctx context.Context, in *wire.Incoming) error {
	g.mu.Lock()
	snd, rec := g.snd, g.n.state.view().Groups[g.name]
	g.mu.Unlock()
	switch {
	case snd == nil || rec == nil:
		return &wire.Error{Kind: wire.KindUnavailable, Message: fmt.Sprintf("node %s does not send group %s just now", g.n.cfg.Name, g.name)}
	case in.Peer.Name != rec.Spec.Group.Secondary:
		return refused("group %s: its secondary is %s, not %s", g.name, rec.Spec.Group.Secondary, in.Peer.Name)
	}
	if err := g.silent(); err != nil {
		return &wire.Error{Kind: wire.KindUnavailable, Message: err.Error()}
	}
	return snd.Handle(ctx, in)
}

// asksToPull says whether the hello of a stream is that of a receiver that dials its source.
func asksToPull(in *wire.Incoming) (bool, error) {
	var h wire.PullHello
	err := in.Peer.Decode(&h)
	return h.Pull, err
}

// notPulled words the state of a sender that waits to be asked.
func notPulled(st sender.Status, peer string) string {
	if st.BlockedOn == "" {
		return "waits for " + peer + " to ask for records"
	}
	return "waits for " + peer + " to ask for records: " + st.BlockedOn
}
