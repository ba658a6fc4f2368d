package powerloss

import (
	"context"
	"errors"
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
	heard sync.Cond // on mu: somebody is heard again, or a link has ended
	ports map[string]*port
	conns map[*link]bool
	off   map[string]bool    // nodes without power
	cut   map[[2]string]bool // from, to; "*": anybody
	mute  map[[2]string]bool // from, to: what one says does not reach the other, neither bytes nor the end of a connection
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
	dead     bool // under mu
}

var helloName = regexp.MustCompile(`"name":"([^"]*)"`)

func newNetwork() *network {
	n := &network{ports: map[string]*port{}, conns: map[*link]bool{}, off: map[string]bool{}, cut: map[[2]string]bool{},
		mute: map[[2]string]bool{}}
	n.heard.L = &n.mu
	return n
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
	if !n.reaches(k, k.from, k.to) {
		return
	}
	count, _ := p.bytes.LoadOrStore(k.from, &atomic.Int64{})
	back := make(chan struct{})
	go func() {
		defer close(back)
		n.pump(k, k.to, k.from, k.a, k.b, make([]byte, 32<<10), nil)
		n.end(k)
	}()
	if _, err := k.b.Write(buf[:first]); err == nil {
		count.(*atomic.Int64).Add(int64(first))
		n.pump(k, k.from, k.to, k.b, k.a, buf, count.(*atomic.Int64))
	}
	n.end(k)
	<-back
}

// end closes both ends of a link.
func (n *network) end(k *link) {
	n.mu.Lock()
	k.dead = true
	n.heard.Broadcast()
	n.mu.Unlock()
	k.a.Close()
	k.b.Close()
}

// reaches waits until what one end says reaches the other; false: the link has ended meanwhile.
func (n *network) reaches(k *link, from, to string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for n.mute[[2]string{from, to}] && !k.dead {
		n.heard.Wait()
	}
	return !k.dead
}

func (n *network) pump(k *link, sender, hearer string, to, from net.Conn, buf []byte, count *atomic.Int64) {
	for {
		got, err := from.Read(buf)
		if !n.reaches(k, sender, hearer) {
			return
		}
		if got > 0 {
			if _, err := to.Write(buf[:got]); err != nil {
				n.reaches(k, hearer, sender) // that it has closed is a word of its too
				return
			}
			if count != nil {
				count.Add(int64(got))
			}
		}
		if err != nil {
			return
		}
	}
}

// silence has what one says not reach the other, in either's connections, until it is lifted: then what was said arrives late.
func (n *network) silence(from, to string, on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mute[[2]string{from, to}] = on
	n.heard.Broadcast()
}

// says waits until a word of one reaches the other, which has no port here; an error if the way is cut.
func (n *network) says(ctx context.Context, from, to string) error {
	for {
		n.mu.Lock()
		cut, mute := n.cut[[2]string{from, to}], n.mute[[2]string{from, to}]
		n.mu.Unlock()
		if cut {
			return errCut
		}
		if !mute {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

var errCut = errors.New("the link is cut")

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
			k.dead = true
			k.a.Close()
			k.b.Close()
		}
	}
	n.heard.Broadcast()
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
		k.dead = true
		k.a.Close()
		k.b.Close()
	}
	n.heard.Broadcast()
	n.mu.Unlock()
	n.work.Wait()
}
