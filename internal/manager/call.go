package manager

import (
	"context"
	"errors"
	"sync"
	"time"

	"gantline/internal/control"
	"gantline/internal/wire"
)

// Caller calls one node. It connects when needed and again after a loss. Errors that the node itself gave are
// *control.Error; one of KindUnreachable means that the method may or may not have run.
type Caller interface {
	Connect(ctx context.Context) error
	Call(ctx context.Context, method string, in, out any) error
	Close()
}

// Dialer makes a Caller for an address; it does not connect yet.
type Dialer func(address string) Caller

const (
	dialTimeout = 2 * time.Second
	callTimeout = 5 * time.Second
	liveTimeout = time.Second // for what is only shown
	maxCallers  = 4096
	// A journal is written once when it is made, so that later syncs are cheap.
	slowestDisk = 16 << 20 // bytes a second
)

// DialWire calls nodes by frames.
func DialWire(address string) Caller {
	return &wireCaller{wire.NewCaller(address, wire.Hello{Version: wire.HelloVersion, Role: "manager", Name: "manager"})}
}

type wireCaller struct{ *wire.Caller }

func (w *wireCaller) Connect(ctx context.Context) error {
	_, err := w.Peer(ctx)
	return fromWire(err)
}

func (w *wireCaller) Call(ctx context.Context, method string, in, out any) error {
	return fromWire(w.Caller.Call(ctx, method, in, out))
}

func fromWire(err error) error {
	if err == nil {
		return nil
	}
	var e *wire.Error
	if !errors.As(err, &e) {
		return &control.Error{Kind: control.KindUnreachable, Message: err.Error()}
	}
	kind := control.KindFailed
	switch e.Kind {
	case wire.KindNotFound:
		kind = control.KindNotFound
	case wire.KindRefused, wire.KindNotBuilt, wire.KindSession:
		kind = control.KindRefused
	case wire.KindInvalid:
		kind = control.KindUsage
	case wire.KindUnavailable:
		kind = control.KindUnreachable
	}
	return &control.Error{Kind: kind, Message: e.Message}
}

// nodeCalls has one caller per address.
type nodeCalls struct {
	dial    Dialer
	address func(ctx context.Context, node string) (string, error)

	mu      sync.Mutex
	callers map[string]Caller
}

func newNodeCalls(dial Dialer, address func(context.Context, string) (string, error)) *nodeCalls {
	return &nodeCalls{dial: dial, address: address, callers: map[string]Caller{}}
}

func (n *nodeCalls) caller(address string) Caller {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := n.callers[address]
	if c == nil {
		if len(n.callers) >= maxCallers { // addresses of the past; those in use come back by themselves
			for a, old := range n.callers {
				old.Close()
				delete(n.callers, a)
			}
		}
		c = n.dial(address)
		n.callers[address] = c
	}
	return c
}

func (n *nodeCalls) close() {
	n.mu.Lock()
	callers := n.callers
	n.callers = map[string]Caller{}
	n.mu.Unlock()
	for _, c := range callers {
		c.Close()
	}
}

// call makes one call within a deadline. All methods may be repeated, so one whose connection was lost is made again.
func (n *nodeCalls) call(ctx context.Context, node, method string, in, out any, limit time.Duration) error {
	address, err := n.address(ctx, node)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for try := 0; ; try++ {
		err = n.once(ctx, address, method, in, out)
		if control.KindOf(err) != control.KindUnreachable {
			break
		}
		if ctx.Err() != nil {
			return control.Errorf(control.KindTimeout,
				"node %s at %s did not answer %s within %v; it may still do it: look at the node, then repeat the command",
				node, address, method, limit)
		}
		if try == 1 {
			return control.Errorf(control.KindUnreachable, "node %s at %s does not answer (%v); is its process running?",
				node, address, err)
		}
	}
	var e *control.Error
	if errors.As(err, &e) {
		return &control.Error{Kind: e.Kind, Message: "node " + node + ": " + e.Message}
	}
	return err
}

func (n *nodeCalls) once(ctx context.Context, address, method string, in, out any) error {
	c := n.caller(address)
	dctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if err := c.Connect(dctx); err != nil {
		return &control.Error{Kind: control.KindUnreachable, Message: err.Error()}
	}
	return c.Call(ctx, method, in, out)
}

// nodeAddress is where a registered node is called.
func (m *Manager) nodeAddress(ctx context.Context, node string) (string, error) {
	g, err := load[control.Node](ctx, m, control.KindNode, node)
	if err != nil {
		return "", err
	}
	return g.V.Address, nil
}

// peerAddress is where other nodes reach a registered node.
func (m *Manager) peerAddress(ctx context.Context, node string) (string, error) {
	g, err := load[control.Node](ctx, m, control.KindNode, node)
	if err != nil {
		return "", err
	}
	return g.V.PeerAddress(), nil
}

// do calls a node to change something; in a dry run it is only written down.
func (m *Manager) do(ctx context.Context, node, method, what string, in, out any, limit time.Duration) error {
	if p := planOf(ctx); p != nil {
		p.add("node " + node + ": " + method + " " + what)
		return nil
	}
	return m.nodes.call(ctx, node, method, in, out, limit)
}

// unreachable says that the other side was not there, as opposed to having answered no.
func unreachable(err error) bool {
	k := control.KindOf(err)
	return k == control.KindUnreachable || k == control.KindTimeout
}

// live is what each node says of itself just now; nodes that do not answer within a second are missing.
func (m *Manager) live(ctx context.Context, nodes ...string) map[string]*control.NodeStatus {
	out := map[string]*control.NodeStatus{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	seen := map[string]bool{}
	for _, node := range nodes {
		if node == "" || seen[node] {
			continue
		}
		seen[node] = true
		wg.Go(func() {
			st := &control.NodeStatus{}
			if err := m.nodes.call(ctx, node, control.CallNodeStatus, struct{}{}, st, liveTimeout); err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			out[node] = st
		})
	}
	wg.Wait()
	return out
}
