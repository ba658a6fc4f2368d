package node

import (
	"context"
	"fmt"
	"net"
)

func (n *Node) addressOf(node string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.address[node]
}

// dialer connects to another node, wherever that is by then.
func (n *Node) dialer(node string) func(ctx context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		addr := n.addressOf(node)
		if addr == "" {
			return nil, fmt.Errorf("address of node %s is not known", node)
		}
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	}
}
