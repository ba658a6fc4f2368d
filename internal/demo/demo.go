package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/nbd"
	"gantline/internal/proof"
)

// Options of a demo; zero values are the defaults named.
type Options struct {
	Volumes int           // 3
	Size    int64         // bytes of each, 64 MiB
	Load    time.Duration // how long the load runs before the move, and after it: 3 s
	Depth   int           // requests in flight, 8
	Rate    int           // writes a second, 4000; -1: as fast as it goes
	Dir     string        // keep the files here; empty: a temporary directory, removed at the end
	Seed    uint64        // 0: any

	// Settings of the group; empty: the defaults.
	Transfer, Retain string
	Strategy         string // of the move; empty: switch-first

	Log *slog.Logger // none: the parts' own logs are not shown
}

func (o *Options) defaults() {
	if o.Volumes == 0 {
		o.Volumes = 3
	}
	if o.Size == 0 {
		o.Size = 64 << 20
	}
	if o.Load == 0 {
		o.Load = 3 * time.Second
	}
	if o.Depth == 0 {
		o.Depth = 8
	}
	if o.Rate == 0 {
		o.Rate = 4000
	}
	if o.Seed == 0 {
		o.Seed = rand.Uint64()
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
}

// Report is what --json prints.
type Report struct {
	OK        bool            `json:"ok"`
	Host      HostReport      `json:"host"`
	Migration MigrationReport `json:"migration"`
	WAN       WANReport       `json:"wan"`
	Secondary SecondaryReport `json:"secondary"`
	Failed    []string        `json:"failed"` // checks that did not hold
	Seed      uint64          `json:"seed"`
}

// HostReport is the load's own view.
type HostReport struct {
	Writes       int64   `json:"writes"`
	Reads        int64   `json:"reads"`
	Errors       int64   `json:"errors"`
	P50MS        float64 `json:"p50_ms"`
	P99MS        float64 `json:"p99_ms"`
	LongestGapMS float64 `json:"longest_gap_ms"`
}

// MigrationReport is the manager's view of the move.
type MigrationReport struct {
	PauseMS         float64 `json:"pause_ms"`
	Seconds         float64 `json:"seconds"`
	BytesBackground int64   `json:"bytes_background"`
	BytesOnDemand   int64   `json:"bytes_on_demand"`
}

// WANReport compares what hosts wrote with what was sent to the remote site.
type WANReport struct {
	HostBytes int64 `json:"host_bytes"`
	SentBytes int64 `json:"sent_bytes"`
}

// SecondaryReport is what the remote image proved.
type SecondaryReport struct {
	PrefixOK     bool `json:"prefix_ok"`
	WritesBehind int  `json:"writes_behind"` // when it was stopped in the middle of the move
	EqualAtEnd   bool `json:"equal_at_end"`
}

// demo is one run.
type demo struct {
	opts   Options
	out    io.Writer
	sys    *system
	load   *proof.Load
	conns  []*nbd.Client
	began  time.Time
	report Report
}

// Run shows the whole on out and returns its report. The error says why it could not be carried through; a check that
// did not hold is no error, but Report.OK is false.
func Run(ctx context.Context, opts Options, out io.Writer) (report Report, err error) {
	opts.defaults()
	dir := opts.Dir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "gantline-demo-"); err != nil {
			return report, err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	d := &demo{opts: opts, out: out, began: time.Now()}
	d.report.Seed = opts.Seed
	if dir, err = filepath.Abs(dir); err != nil {
		return report, err
	}
	d.picture()
	d.say("starting a manager, three nodes and a gateway in %s", dir)
	if d.sys, err = startSystem(dir, opts.Log); err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, d.sys.stop()) }()
	if err := d.run(ctx); err != nil {
		return d.report, err
	}
	d.conclude()
	return d.report, nil
}

func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.out, "%6.1fs  %s\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
}

func (d *demo) picture() {
	fmt.Fprint(d.out, `
   local site                                     remote site
   ┌──────┐   NBD   ┌─────────┐
   │ load │────────▶│ gateway │
   └──────┘         └────┬────┘
                         │ switched while the load runs
              ┌──────────┴─────────┐
              ▼                    ▼
        ┌──────────┐  regions ┌──────────┐
        │  node a  │─────────▶│  node b  │
        │ (source) │          │ (target) │
        └────┬─────┘          └────┬─────┘
             │  records 1..N       │  records N+1..
             └──────────┬──────────┘
                        └──────────────────────▶ ┌───────────┐
                                                 │  node c   │
                                                 │(secondary)│
                                                 └───────────┘

`)
}

func (d *demo) do(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := d.sys.client.Do(ctx, method, path, in, out); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

func (d *demo) run(ctx context.Context) error {
	if err := d.build(ctx); err != nil {
		return err
	}
	loadCtx, stopLoad := context.WithCancel(ctx)
	defer stopLoad()
	ended := make(chan error, 1)
	go func() { ended <- d.load.Run(loadCtx) }()
	if err := d.watch(ctx, d.opts.Load); err != nil {
		return err
	}
	if err := d.move(ctx); err != nil {
		return err
	}
	if err := d.watch(ctx, d.opts.Load); err != nil {
		return err
	}
	stopLoad()
	if err := <-ended; err != nil {
		d.failed("the load met an error: %v", err)
	}
	d.say("load stopped")
	return d.atRest(ctx)
}

// build makes the group, pairs it, and opens its virtual volumes as a host does.
func (d *demo) build(ctx context.Context) error {
	for _, n := range []string{"a", "c"} {
		if err := d.do(ctx, "POST", "/v1/journals", control.JournalRequest{Name: n + "/log", Size: 256 << 20}, nil); err != nil {
			return err
		}
	}
	group := control.GroupRequest{Name: "demo", Primary: "a", Secondary: "c", PrimaryJournal: "a/log", SecondaryJournal: "c/log",
		SettingsChange: control.SettingsChange{Transfer: d.opts.Transfer, Retain: d.opts.Retain}}
	if err := d.do(ctx, "POST", "/v1/groups", group, nil); err != nil {
		return err
	}
	for i := range d.opts.Volumes {
		v := fmt.Sprintf("v%d", i+1)
		for _, n := range []string{"a", "c"} {
			if err := d.do(ctx, "POST", "/v1/volumes", control.VolumeRequest{Name: n + "/" + v, Size: d.opts.Size}, nil); err != nil {
				return err
			}
		}
		if err := d.do(ctx, "POST", "/v1/groups/demo/pairs", control.PairRequest{Primary: "a/" + v, Secondary: "c/" + v}, nil); err != nil {
			return err
		}
		if err := d.do(ctx, "POST", "/v1/vvols", control.VvolRequest{Name: "disk" + v[1:], Volume: "a/" + v}, nil); err != nil {
			return err
		}
	}
	err := d.sys.until(30*time.Second, "the group is paired", func(ctx context.Context) (bool, error) {
		g, err := d.group(ctx)
		return err == nil && g.State != nil && *g.State == "paired", err
	})
	if err != nil {
		return err
	}
	d.say("group demo: %d volumes of %d MiB on node a, copied asynchronously to node c", d.opts.Volumes, d.opts.Size>>20)
	return d.open(ctx)
}

func (d *demo) open(ctx context.Context) error {
	var disks []proof.Disk
	for i := range d.opts.Volumes {
		var c *nbd.Client
		name := fmt.Sprintf("disk%d", i+1)
		err := d.sys.until(10*time.Second, "the gateway exports "+name, func(ctx context.Context) (bool, error) {
			var err error
			c, err = nbd.Dial(ctx, "tcp", d.sys.nbd, name)
			return err == nil, nil
		})
		if err != nil {
			return err
		}
		d.conns = append(d.conns, c)
		disks = append(disks, proof.Disk{Target: c, Size: c.Size()})
	}
	d.load = proof.New(disks, proof.Options{Seed: d.opts.Seed, Depth: d.opts.Depth, ReadPercent: 20, FlushEvery: 50, Rate: max(d.opts.Rate, 0)})
	d.say("load: %d requests in flight through the gateway, each write stamped with its number (seed %d)", d.opts.Depth, d.opts.Seed)
	return nil
}

func (d *demo) group(ctx context.Context) (control.GroupView, error) {
	var g control.GroupView
	err := d.do(ctx, "GET", "/v1/groups/demo", nil, &g)
	return g, err
}

// watch shows the load and the lag, a line a second.
func (d *demo) watch(ctx context.Context, length time.Duration) error {
	before := d.load.Stats()
	for end := time.Now().Add(length); time.Now().Before(end); {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(min(time.Second, time.Until(end))):
		}
		g, err := d.group(ctx)
		if err != nil {
			return err
		}
		now := d.load.Stats()
		d.say("primary %s, epoch %d: %5d writes/s, %d errors; secondary %s behind", g.Primary, g.Epoch,
			now.Writes-before.Writes, now.Errors, writesBehind(g))
		before = now
	}
	return nil
}

func writesBehind(g control.GroupView) string {
	if g.Lag.Writes == nil {
		return "an unknown number of writes"
	}
	return fmt.Sprintf("%d writes", *g.Lag.Writes)
}

// move starts the migration, follows it, and stops the secondary in the middle of it to look at its files.
func (d *demo) move(ctx context.Context) error {
	d.load.ResetLatency()
	began := time.Now()
	var m control.MigrationView
	if err := d.do(ctx, "POST", "/v1/migrations", control.MoveRequest{Group: "demo", To: "b", Strategy: d.opts.Strategy}, &m); err != nil {
		return err
	}
	d.say("migrate start demo --to b: %s", m.ID)
	shown := map[string]bool{}
	for m.Phase != control.PhaseFilled {
		if m.Phase == control.PhaseFailed || m.Phase == control.PhaseAborted {
			return fmt.Errorf("the move ended as %s: %s", m.Phase, m.Error)
		}
		if time.Since(began) > 2*time.Minute {
			return fmt.Errorf("the move is still %s after 2 minutes", m.Phase)
		}
		time.Sleep(20 * time.Millisecond)
		if err := d.do(ctx, "GET", "/v1/migrations/"+m.ID, nil, &m); err != nil {
			return err
		}
		for _, s := range m.Steps {
			if shown[s.Step] {
				continue
			}
			shown[s.Step] = true
			d.step(s, m)
			if s.Step == control.StepRun {
				if err := d.look(ctx); err != nil {
					return err
				}
			}
		}
	}
	d.report.Migration.Seconds = time.Since(began).Seconds()
	if m.PauseMS != nil {
		d.report.Migration.PauseMS = *m.PauseMS
	}
	if m.Bytes.Background != nil && m.Bytes.OnDemand != nil {
		d.report.Migration.BytesBackground, d.report.Migration.BytesOnDemand = *m.Bytes.Background, *m.Bytes.OnDemand
	}
	s := d.load.Stats()
	d.report.Host.P50MS, d.report.Host.P99MS, d.report.Host.LongestGapMS = ms(s.P50), ms(s.P99), ms(s.LongestGap)
	d.say("moved: hosts were held for %.1f ms; the load's own longest gap was %.1f ms", d.report.Migration.PauseMS, ms(s.LongestGap))
	return nil
}

func ms(t time.Duration) float64 { return float64(t.Microseconds()) / 1000 }

var stepWords = map[string]string{
	control.StepRegister: "registered with all three nodes; nothing has changed for hosts",
	control.StepCopy:     "b has all that a has, and follows what hosts write",
	control.StepThrough:  "b relays every request to a",
	control.StepSwitch:   "the gateway's paths lead to b",
	control.StepPend:     "b holds requests; those relayed are answered",
	control.StepSeal:     "a has ended its epoch: its log closes with a fence that names b",
	control.StepDecide:   "the store has decided once: b is the primary, next epoch",
	control.StepSource:   "the secondary copies from a up to the cut, from b beyond it",
	control.StepRun:      "held requests run at b; regions that are absent, if any, are fetched from a",
	control.StepDrained:  "the secondary has all that a had to send",
	control.StepSingle:   "the secondary copies from b alone",
	control.StepFill:     "every region is at b, durably",
}

func (d *demo) step(s control.Step, m control.MigrationView) {
	extra := ""
	if s.Step == control.StepSeal && m.Cut != nil {
		extra = fmt.Sprintf(" (record %d)", *m.Cut)
	}
	d.say("  %-9s %s%s", s.Step, stepWords[s.Step], extra)
}

// look stops the secondary's node in the middle of everything, reads its files and starts it again: what the remote
// site would have if the local one died now.
func (d *demo) look(ctx context.Context) error {
	if err := d.sys.nodes["c"].stop(); err != nil {
		return err
	}
	v, err := d.check(ctx)
	if err != nil {
		return err
	}
	d.report.Secondary.PrefixOK, d.report.Secondary.WritesBehind = v.OK, v.Behind
	if v.OK {
		d.say("  node c stopped in the middle: its image is exactly a prefix, %d writes behind", v.Behind)
	} else {
		d.failed("node c stopped in the middle: %s", v.Why)
	}
	return d.sys.startNode("c")
}

// check compares the files of the secondary's volumes with the load's history.
func (d *demo) check(context.Context) (proof.Verdict, error) {
	var images []io.ReaderAt
	for i := range d.opts.Volumes {
		f, err := os.Open(filepath.Join(d.sys.dir, "c", "volumes", fmt.Sprintf("v%d.raw", i+1)))
		if err != nil {
			return proof.Verdict{}, err
		}
		defer f.Close()
		images = append(images, f)
	}
	return d.load.CheckPrefix(images)
}

// atRest waits until nothing is under way, then wants equality.
func (d *demo) atRest(ctx context.Context) error {
	err := d.sys.until(30*time.Second, "the secondary has caught up", func(ctx context.Context) (bool, error) {
		g, err := d.group(ctx)
		return err == nil && g.Lag.Writes != nil && *g.Lag.Writes == 0, err
	})
	if err != nil {
		return err
	}
	g, err := d.group(ctx)
	if err != nil {
		return err
	}
	s := d.load.Stats()
	d.report.Host.Writes, d.report.Host.Reads, d.report.Host.Errors = s.Writes, s.Reads, s.Errors
	d.report.WAN.HostBytes = s.Bytes
	if g.WANBytesSent != nil {
		d.report.WAN.SentBytes = *g.WANBytesSent
	}
	for _, c := range d.conns {
		c.Close()
	}
	if err := d.sys.nodes["c"].stop(); err != nil {
		return err
	}
	delete(d.sys.nodes, "c")
	v, err := d.check(ctx)
	if err != nil {
		return err
	}
	d.report.Secondary.EqualAtEnd = v.OK && v.Equal
	if !d.report.Secondary.EqualAtEnd {
		d.failed("the secondary is not equal at the end: %d writes behind; %s", v.Behind, v.Why)
	}
	return nil
}

func (d *demo) failed(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	d.report.Failed = append(d.report.Failed, text)
	d.say("FAILED: %s", text)
}

// conclude judges the whole and prints it.
func (d *demo) conclude() {
	r := &d.report
	if r.Host.Errors > 0 {
		d.failed("%d host requests failed", r.Host.Errors)
	}
	// Frames and records cost a little beside the data; a re-copy would at least double it.
	if limit := r.WAN.HostBytes + r.WAN.HostBytes/20 + 1<<20; r.WAN.SentBytes > limit {
		d.failed("%d bytes were sent for %d written", r.WAN.SentBytes, r.WAN.HostBytes)
	}
	r.OK = len(r.Failed) == 0 && r.Secondary.PrefixOK && r.Secondary.EqualAtEnd
	word := "every check held"
	if !r.OK {
		word = "NOT every check held"
	}
	fmt.Fprintf(d.out, `
   host        %d writes, %d reads, %d errors; during the move p50 %.2f ms, p99 %.2f ms, longest gap %.1f ms
   move        held for %.1f ms; %.1f s in all; %.1f MiB in the background, %.1f MiB on demand
   WAN         %.1f MiB written by the host, %.1f MiB sent: no re-copy
   secondary   a prefix in the middle of the move (%d writes behind): %v; equal at the end: %v

   %s

`, r.Host.Writes, r.Host.Reads, r.Host.Errors, r.Host.P50MS, r.Host.P99MS, r.Host.LongestGapMS,
		r.Migration.PauseMS, r.Migration.Seconds, mib(r.Migration.BytesBackground), mib(r.Migration.BytesOnDemand),
		mib(r.WAN.HostBytes), mib(r.WAN.SentBytes), r.Secondary.WritesBehind, r.Secondary.PrefixOK, r.Secondary.EqualAtEnd, word)
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// target is kept so that the compiler says when a client stops being one.
var _ block.Target = (*nbd.Client)(nil)
