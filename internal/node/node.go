package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/nbd"
	"gantline/internal/volume"
	"gantline/internal/wire"
)

// Manager is what a node needs of the manager; the node works without it but for registration and decisions.
type Manager interface {
	SyncNode(ctx context.Context, report control.NodeReport) (control.NodeSyncReply, error)
	Decide(ctx context.Context, id string, in control.DecideRequest) (control.DecideReply, error)
}

// Config of a node. Zero values are the defaults of INTERFACE §1.
type Config struct {
	Name, Site string
	DataDir    string
	Listen     []string // frames, for gateways and the manager; and for nodes if PeerListen is empty
	PeerListen string
	Advertise  string
	NBD        string
	NBDUnix    string
	HTTP       string
	Memory     int64   // bytes for caches of all groups
	Boot       string  // names the machine's boot: with another one, what was not flushed is gone; "": the kernel's
	Devices    Devices // nil: files and block devices of this machine
	Manager    Manager
	Logger     *slog.Logger
	// Point is called around every step of a move that this process takes part in (kill points of tests).
	Point func(step, edge string)
	// Ready is told the real addresses once all is served.
	Ready func(listen, nbd, http string)

	patience   volume.SyncConfig // times of synchronous groups; tests are less patient
	started    func(*Node)       // tests look inside
	copyBytes  int64             // copied blocks of a group that are on their way at most; 0: the volume's default
	linkRetry  time.Duration     // tests cut links more often than users do; 0: the sender's default
	carryPiece int               // of a batch in one answer to a target that carries a backlog; 0: carryPiece
}

// Devices opens what lies below volumes, journals and maps. Tests put devices in its place that lose power.
type Devices interface {
	Open(path string) (block.Device, error)
	Create(path string, size int64) (block.Device, error)
	// Exists says whether Open would find something at path.
	Exists(path string) (bool, error)
	Remove(path string) error
}

// machine is this machine's own files and devices.
type machine struct{}

func (machine) Open(path string) (block.Device, error) { return block.OpenFile(path) }
func (machine) Create(path string, size int64) (block.Device, error) {
	return block.CreateFile(path, size)
}
func (machine) Remove(path string) error { return os.Remove(path) }
func (machine) Exists(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// ErrRegistered: the manager refuses this node: another has its name.
var ErrRegistered = errors.New("refused by the manager")

// Node is a running storage node.
type Node struct {
	cfg      Config
	log      *slog.Logger
	state    *state
	instance string
	sessions *wire.Sessions
	exports  *exports

	// config serialises changes of configuration: one volume, journal, group or move at a time.
	config   sync.Mutex
	growing  map[string]*part // journals that are being grown; under config
	clearing map[string]bool  // volumes whose raw devices are being cleared ahead; under config

	mu      sync.Mutex
	volumes map[string]*nodeVolume
	broken  map[string]error // volumes that could not be opened, and why
	groups  map[string]*group
	moves   map[string]*move
	callers map[string]*wire.Caller
	alarmed chan struct{}     // a journal has reached or left a high-water mark: the manager is told now
	address map[string]string // of other nodes, as last told
	links   map[string]*link  // to other nodes
	events  events

	began time.Time // where the node's own clock starts

	runCtx context.Context // ends when the node stops
	asked  *scope          // promotions that the own socket has begun
	work   sync.WaitGroup
}

// Run serves until ctx ends, then stops so that every volume's device is complete.
func Run(ctx context.Context, cfg Config) error {
	n, err := start(ctx, cfg)
	if err != nil {
		return err
	}
	if cfg.started != nil {
		cfg.started(n)
	}
	err = n.serve(ctx)
	return errors.Join(err, n.stop())
}

func (cfg *Config) defaults() {
	if cfg.Point == nil {
		cfg.Point = func(string, string) {}
	}
	if cfg.Ready == nil {
		cfg.Ready = func(string, string, string) {}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if len(cfg.Listen) == 0 {
		cfg.Listen = []string{"127.0.0.1:10821"}
	}
	if cfg.Boot == "" {
		raw, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // without it every start counts as one
		if cfg.Boot = strings.TrimSpace(string(raw)); cfg.Boot == "" {
			cfg.Boot = randomID()
		}
	}
	if cfg.Devices == nil {
		cfg.Devices = machine{}
	}
	if cfg.Memory == 0 {
		cfg.Memory = 512 << 20
	}
}

// start brings back from disk all that this node is. Order: volumes, then groups on them, then moves on those.
func start(ctx context.Context, cfg Config) (*Node, error) {
	cfg.defaults()
	for _, dir := range []string{"volumes", "journals", "maps"} {
		if err := os.MkdirAll(filepath.Join(cfg.DataDir, dir), 0o700); err != nil {
			return nil, err
		}
	}
	debug.SetMemoryLimit(cfg.Memory)
	st, err := openState(cfg.DataDir, cfg.Name, cfg.Logger)
	if err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, log: cfg.Logger, state: st, instance: randomID(), runCtx: ctx, asked: newScope(), began: time.Now(),
		volumes: map[string]*nodeVolume{}, broken: map[string]error{}, groups: map[string]*group{}, moves: map[string]*move{},
		growing: map[string]*part{}, callers: map[string]*wire.Caller{}, address: map[string]string{}, links: map[string]*link{},
		alarmed: make(chan struct{}, 1)}
	n.exports = newExports(n)
	n.sessions = wire.NewSessions(wire.SessionLimits{}, nil)
	d := st.view()
	n.removeParts(d)
	for _, rec := range d.Volumes {
		// A volume that cannot be opened does not keep the others from serving; it and its group say why.
		if err := n.openVolume(rec); err != nil {
			n.log.Error("volume not opened", "volume", rec.Name, "cause", err)
			n.broken[rec.Name] = err
		}
	}
	if err := n.askPeers(d); err != nil {
		return nil, errors.Join(err, n.stop())
	}
	if err := n.sweepCarried(); err != nil {
		n.log.Warn("room that nobody needs is not given back", "cause", err)
	}
	if err := n.startGroups(st.view()); err != nil {
		return nil, errors.Join(err, n.stop())
	}
	return n, nil
}

// startGroups opens groups and moves. A group that cannot be opened does not keep the others from serving: it is
// there as failed and says why.
func (n *Node) startGroups(d *durable) error {
	moves, broken := map[string]*move{}, map[string]error{}
	for id, rec := range d.Moves {
		n.learn(rec.Spec.Address)
		m, err := n.newMove(id, rec)
		if err != nil {
			n.log.Error("move not opened", "id", id, "cause", err)
			broken[rec.Spec.Group.Name] = err
		}
		moves[id] = m
	}
	for name, rec := range d.Groups {
		if rec.Role == control.RoleRetired {
			continue
		}
		n.learn(rec.Spec.Address)
		g := n.newGroup(name)
		err := broken[name]
		if err == nil {
			err = g.open(rec)
		}
		if err != nil {
			n.log.Error("group not opened", "group", name, "cause", err)
			g.fail(err)
		}
	}
	for id, rec := range d.Moves {
		if runsTarget(rec) && broken[rec.Spec.Group.Name] == nil {
			if err := n.startTarget(moves[id], rec); err != nil {
				return err
			}
		}
	}
	return nil
}

// serve listens and registers until ctx ends.
func (n *Node) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	eg, ctx := errgroup.WithContext(ctx)
	frames := wire.NewServer(n.handlers(), wire.Limits{})
	addrs := append([]string(nil), n.cfg.Listen...)
	if n.cfg.PeerListen != "" {
		addrs = append(addrs, n.cfg.PeerListen)
	}
	var listens []net.Listener
	for _, a := range addrs {
		l, err := listenLoopback("tcp", a)
		if err != nil {
			return err
		}
		listens = append(listens, l)
		eg.Go(func() error { return frames.Serve(ctx, l) })
	}
	nbdAddrs, err := n.serveNBD(ctx, eg)
	if err != nil {
		return err
	}
	if err := n.serveOwn(ctx, eg); err != nil {
		return err
	}
	httpAddr, err := n.serveHTTP(ctx, eg)
	if err != nil {
		return err
	}
	address, peer := n.cfg.Advertise, ""
	if address == "" {
		address = listens[0].Addr().String()
	}
	if n.cfg.PeerListen != "" {
		peer = listens[len(listens)-1].Addr().String()
	}
	report := control.NodeReport{Node: control.Node{Name: n.cfg.Name, Site: n.cfg.Site, Install: n.state.view().Install,
		Instance: n.instance, Address: address, Peer: peer, NBD: nbdAddrs, Since: time.Now().UTC()}}
	eg.Go(func() error { return n.sessions.Run(ctx) })
	eg.Go(func() error { return n.watchJournals(ctx) })
	eg.Go(func() error { return n.watchGroups(ctx) })
	eg.Go(func() error {
		<-ctx.Done()
		n.letGo()
		return nil
	})
	if n.cfg.Manager != nil {
		eg.Go(func() error { return n.register(ctx, report) })
	}
	n.cfg.Ready(listens[0].Addr().String(), strings.Join(nbdAddrs, ","), httpAddr)
	return eg.Wait()
}

// letGo answers what is held or relayed when the node stops, since its connections wait for it. Gateways have lost their
// connections by then and keep their requests for whoever serves next.
func (n *Node) letGo() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, m := range n.moves {
		if m.ops != nil {
			m.ops.letGo()
		}
	}
	for _, g := range n.groups {
		g.mu.Lock()
		sub := g.sub
		g.mu.Unlock()
		if sub != nil {
			sub.StopWaiting()
		}
	}
	for _, v := range n.volumes {
		if mode := v.vol.Mode(); mode == volume.ModePending || mode == volume.ModeThrough {
			_ = v.vol.SetMode(context.Background(), volume.ModeFailed, false) // cannot fail without draining
		}
	}
}

// register keeps the manager told that this node is up. A manager that is away changes nothing here; one that refuses
// the name ends a process that has not been registered before under it.
func (n *Node) register(ctx context.Context, report control.NodeReport) error {
	for {
		report.Alarms, report.Promoted = n.alarms(), n.promotions()
		call, cancel := context.WithTimeout(ctx, 5*time.Second)
		reply, err := n.cfg.Manager.SyncNode(call, report)
		cancel()
		if err == nil && reply.Refused != "" {
			return fmt.Errorf("%w: node %s: %s", ErrRegistered, n.cfg.Name, reply.Refused)
		}
		wait := 2 * time.Second
		if err != nil {
			wait = 500 * time.Millisecond
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		case <-n.alarmed:
		}
	}
}

// listenLoopback refuses any address beyond this machine: frames and NBD carry no TLS yet.
func listenLoopback(network, addr string) (net.Listener, error) {
	if network == "unix" {
		if err := os.Remove(addr); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("listen on %s: %w", addr, err)
		}
		return net.Listen(network, addr)
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %q: %w", addr, err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, &AddressError{Address: addr}
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return l, nil
}

// AddressError: plain text is spoken on loopback only, and TLS is not built yet.
type AddressError struct{ Address string }

func (e *AddressError) Error() string {
	return fmt.Sprintf("listen on %s refused: connections are not encrypted yet, so only loopback addresses are allowed", e.Address)
}

// serveNBD serves the node's own exports.
func (n *Node) serveNBD(ctx context.Context, eg *errgroup.Group) ([]string, error) {
	if n.cfg.NBD == "" && n.cfg.NBDUnix == "" {
		return nil, nil
	}
	server := nbd.NewServer(nbd.Options{Exports: n.exports, Log: n.log, MaxConns: 64, MaxBytes: 32 << 20})
	eg.Go(func() error {
		<-ctx.Done()
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		return server.Shutdown(stop)
	})
	var addrs []string
	add := func(network, addr string) error {
		l, err := listenLoopback(network, addr)
		if err != nil {
			return err
		}
		name := l.Addr().String()
		if network == "unix" {
			name = "unix:" + addr
		}
		addrs = append(addrs, name)
		eg.Go(func() error {
			err := server.Serve(ctx, l)
			if ctx.Err() != nil {
				return nil
			}
			return err
		})
		return nil
	}
	if n.cfg.NBD != "" {
		if err := add("tcp", n.cfg.NBD); err != nil {
			return nil, err
		}
	}
	if n.cfg.NBDUnix != "" {
		if err := add("unix", n.cfg.NBDUnix); err != nil {
			return nil, err
		}
	}
	return addrs, nil
}

func (n *Node) serveHTTP(ctx context.Context, eg *errgroup.Group) (string, error) {
	if n.cfg.HTTP == "" {
		return "", nil
	}
	l, err := listenLoopback("tcp", n.cfg.HTTP)
	if err != nil {
		return "", err
	}
	srv := &http.Server{Handler: n.healthHandler(), ReadHeaderTimeout: 10 * time.Second}
	eg.Go(func() error {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	eg.Go(func() error {
		<-ctx.Done()
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		return srv.Shutdown(stop)
	})
	return l.Addr().String(), nil
}

// stop waits for promotions under way, ends moves, then groups, then volumes: what still has to be written is written, so that devices are complete.
func (n *Node) stop() error {
	n.asked.stop() // first: they need open groups
	n.mu.Lock()
	moves, groups, volumes, callers := n.moves, n.groups, n.volumes, n.callers
	n.mu.Unlock()
	var errs []error
	for _, m := range moves {
		m.stop()
	}
	for _, g := range groups {
		errs = append(errs, g.close())
	}
	for _, m := range moves {
		m.closeMaps()
	}
	n.work.Wait()
	for _, v := range volumes {
		errs = append(errs, v.vol.Close(), v.dev.Close())
	}
	for _, c := range callers {
		c.Close()
	}
	return errors.Join(errs...)
}

func splitName(full string) (node, name string) {
	node, name, _ = strings.Cut(full, "/")
	return node, name
}
