package powerloss

import (
	"net"
	"regexp"
	"sync"
	"sync/atomic"
	"time"
)

// network stands between all processes: a node is reached at its port here only, under one address for all its lives.
// Who connects is read off the hello that opens every connection.
type network struct {
	mu    sync.Mutex
	ports map[string]*port
	conns map[*link]bool
	off   map[string]bool    // nodes without power
	cut   map[[2]string]bool // from, to; "*": anybody
	work  sync.WaitGroup
}

type port struct {
	to     string
	l      net.Listener
	target string // where the node listens in this life
	bytes  sync.Map
}

// link is one connection through the network.
type link struct {
	from, to string
	a, b     net.Conn
}

var helloName = regexp.MustCompile(`"name":"([^"]*)"`)

func newNetwork() *network {
	return &network{ports: map[string]*port{}, conns: map[*link]bool{}, off: map[string]bool{}, cut: map[[2]string]bool{}}
}

// open makes the port of a node.
func (n *network) open(to string) (addr string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	p := &port{to: to, l: l}
	n.mu.Lock()
	n.ports[to] = p
	n.mu.Unlock()
	n.work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			n.work.Go(func() { n.carry(p, c) })
		}
	})
	return l.Addr().String(), nil
}

func (n *network) lead(to, target string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ports[to].target = target
}

// carry forwards one connection until an end closes it or it is cut.
func (n *network) carry(p *port, a net.Conn) {
	defer a.Close()
	buf := make([]byte, 32<<10)
	_ = a.SetReadDeadline(time.Now().Add(10 * time.Second))
	first, err := a.Read(buf)
	if err != nil {
		return
	}
	_ = a.SetReadDeadline(time.Time{})
	k := &link{to: p.to, a: a}
	if m := helloName.FindSubmatch(buf[:first]); m != nil {
		k.from = string(m[1])
	}
	if k.b, err = net.Dial("tcp", n.targetOf(p)); err != nil {
		return
	}
	defer k.b.Close()
	if !n.enter(k) {
		return
	}
	defer n.leave(k)
	count, _ := p.bytes.LoadOrStore(k.from, &atomic.Int64{})
	back := make(chan struct{})
	go func() {
		defer close(back)
		pump(k.a, k.b, make([]byte, 32<<10), nil)
		k.a.Close()
		k.b.Close()
	}()
	if _, err := k.b.Write(buf[:first]); err == nil {
		count.(*atomic.Int64).Add(int64(first))
		pump(k.b, k.a, buf, count.(*atomic.Int64))
	}
	k.a.Close()
	k.b.Close()
	<-back
}

func pump(to, from net.Conn, buf []byte, count *atomic.Int64) {
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
			if count != nil {
				count.Add(int64(n))
			}
		}
		if err != nil {
			return
		}
	}
}

func (n *network) targetOf(p *port) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return p.target
}

func (n *network) enter(k *link) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.passes(k) {
		return false
	}
	n.conns[k] = true
	return true
}

func (n *network) passes(k *link) bool {
	return !n.off[k.from] && !n.off[k.to] && !n.cut[[2]string{k.from, k.to}] && !n.cut[[2]string{"*", k.to}]
}

func (n *network) leave(k *link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.conns, k)
}

// power cuts all connections of a node off, or lets it have new ones.
func (n *network) power(node string, on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.off[node] = !on
	n.sever()
}

// link cuts or heals the way of one node to another; from "*": of everybody.
func (n *network) link(from, to string, up bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[[2]string{from, to}] = !up
	n.sever()
}

func (n *network) sever() {
	for k := range n.conns {
		if !n.passes(k) {
			k.a.Close()
			k.b.Close()
		}
	}
}

// sent is how many bytes went from one process to a node.
func (n *network) sent(from, to string) int64 {
	n.mu.Lock()
	p := n.ports[to]
	n.mu.Unlock()
	if c, ok := p.bytes.Load(from); ok {
		return c.(*atomic.Int64).Load()
	}
	return 0
}

func (n *network) close() {
	n.mu.Lock()
	for _, p := range n.ports {
		p.l.Close()
	}
	for k := range n.conns {
		k.a.Close()
		k.b.Close()
	}
	n.mu.Unlock()
	n.work.Wait()
}
