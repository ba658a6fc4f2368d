package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// testCase is one thing measured; run adds its rows to the table.
type testCase struct {
	name, about string
	peers       bool // has something to measure of the peers alone
	run         func(context.Context, *bench) error
}

func cases() []testCase {
	write, read := "randwrite", "randread"
	list := []testCase{
		ioCase("write-4k-d32", "4 KiB random writes, 32 in flight", fioJob{rw: write, block: 4096, depth: 32},
			goal{copied, nbdkit, 1.0}, goal{copied, qemuNbd, 1.2}),
		ioCase("write-4k-d1", "4 KiB random writes, one at a time", fioJob{rw: write, block: 4096, depth: 1},
			goal{copied, qemuNbd, 0.8}, goal{copied, nbdkit, 0}),
		ioCase("read-4k-d32", "4 KiB random reads, 32 in flight", fioJob{rw: read, block: 4096, depth: 32},
			goal{copiedDirect, nbdkit, 0.7}, goal{copiedDirect, qemuNbd, 0}),
		ioCase("read-4k-d1", "4 KiB random reads, one at a time", fioJob{rw: read, block: 4096, depth: 1},
			goal{copiedDirect, nbdkit, 0.9}, goal{copiedDirect, qemuNbd, 0}),
		ioCase("flush-each-d1", "4 KiB random writes, one at a time, a flush after each",
			fioJob{rw: write, block: 4096, depth: 1, fsync: 1}, goal{copied, nbdkit, 0.9}, goal{copied, qemuNbd, 0}),
		ioCase("flush-32-d32", "4 KiB random writes, 32 in flight, a flush every 32",
			fioJob{rw: write, block: 4096, depth: 32, fsync: 32}, goal{copied, nbdkit, 2.0}, goal{copied, qemuNbd, 0}),
		ioCase("write-128k-d16", "128 KiB sequential writes, 16 in flight",
			fioJob{rw: "write", block: 128 << 10, depth: 16},
			goal{journaledDirect, nbdkit, 0.4}, goal{copied, nbdkit, 0.25}, goal{copied, qemuNbd, 0}),
		ioCase("parts", "4 KiB random writes, 32 in flight: what each part of the system costs",
			fioJob{rw: write, block: 4096, depth: 32},
			goal{journaledDirect, plainDirect, 0.8}, goal{copied, copiedDirect, 0.8}, goal{copiedDirect, journaledDirect, 0.7}),
		{name: "lag", about: "how long the secondary lags after 80 % of the highest load", run: lagCase},
		{name: "memory", about: "what a node uses under full load, with the link up and dead", run: memoryCase},
	}
	return append(append(list, copyCases()...), moveCases()...)
}

// side is one of the things compared.
type side string

const (
	nbdkit          side = "nbdkit file"
	qemuNbd         side = "qemu-nbd"
	copied          side = "gateway, journal, copy"
	copiedDirect    side = "node, journal, copy"
	journaledDirect side = "node, journal"
	plainDirect     side = "node alone"
)

func (s side) isPeer() bool { return s == nbdkit || s == qemuNbd || s == mirroring }

// goal asks that ours reaches so much of the other's rate; 0: the ratio is only printed.
type goal struct {
	ours, other side
	atLeast     float64
}

// ioCase runs one job of fio on every side that its goals name, by turns, and compares medians.
func ioCase(name, about string, job fioJob, goals ...goal) testCase {
	c := testCase{name: name, about: about}
	for _, g := range goals {
		c.peers = c.peers || g.other.isPeer()
	}
	c.run = func(ctx context.Context, b *bench) error {
		rates, err := b.turns(ctx, name, job, sidesOf(goals, b.peersOnly))
		if err != nil {
			return err
		}
		if b.peersOnly {
			for s, rate := range rates {
				b.table.absolute(name+" "+string(s), job.unit(), rate)
			}
			return nil
		}
		for _, g := range goals {
			b.table.atLeast(fmt.Sprintf("%s (%s)", name, g.ours), job.unit(), rates[g.ours], rates[g.other], string(g.other), g.atLeast)
		}
		return nil
	}
	return c
}

func sidesOf(goals []goal, peersOnly bool) (sides []side) {
	seen := map[side]bool{}
	for _, g := range goals {
		for _, s := range []side{g.ours, g.other} {
			if !seen[s] && (s.isPeer() || !peersOnly) {
				seen[s] = true
				sides = append(sides, s)
			}
		}
	}
	return sides
}

// unit is what a job's rate is told in: operations for small blocks, megabytes for large ones.
func (j fioJob) unit() string {
	if j.block >= 64<<10 {
		return "MB/s"
	}
	return "/s"
}

// bench has what the cases share: the servers that run and the table.
type bench struct {
	options
	table      *table
	deployment *deployment
	volumes    bool // the deployment has the volumes of the cases with fio
	peers      map[side]endpoint
	processes  []*process
	extra      map[string]bool // volumes made for one case
	moves      int             // volumes made for moves so far
}

func (b *bench) close() error {
	err := b.deployment.stop()
	for _, p := range b.processes {
		err = errors.Join(err, p.stop())
	}
	return err
}

// turns runs the job on each side in turn, again and again, and returns the median rates.
func (b *bench) turns(ctx context.Context, name string, job fioJob, sides []side) (map[side]float64, error) {
	ends := map[side]endpoint{}
	for _, s := range sides {
		e, err := b.endpoint(ctx, s)
		if err != nil {
			return nil, err
		}
		ends[s] = e
	}
	all := map[side][]float64{}
	for turn := range b.runs {
		for _, s := range sides {
			if err := b.rest(ctx, s); err != nil {
				return nil, err
			}
			before, begin := b.cpu(), time.Now()
			profiled := b.startProfiles(ctx, fmt.Sprintf("%s.%d.%s", name, turn+1, s), s)
			r, err := runFio(ctx, ends[s], job, b.size, b.time, turn+1)
			if err = errors.Join(err, profiled()); err != nil {
				return nil, fmt.Errorf("%s: %w", s, err)
			}
			rate := r.iops
			if job.unit() == "MB/s" {
				rate = r.bytes / 1e6
			}
			progress("  %s %d/%d  %-24s %s  p99 %v  cpu per request:%s", name, turn+1, b.runs, s, figure(rate, job.unit()), r.p99,
				cpuPer(before, b.cpu(), r.iops*time.Since(begin).Seconds()))
			all[s] = append(all[s], rate)
		}
	}
	medians := map[side]float64{}
	for s, rates := range all {
		medians[s] = median(rates)
	}
	return medians, nil
}

// cpu is what each server has used of the processors so far.
func (b *bench) cpu() map[string]time.Duration {
	used := map[string]time.Duration{}
	all := slices.Clone(b.processes)
	if d := b.deployment; d != nil {
		all = append(all, d.gateway, d.nodes[nodeA], d.nodes[nodeB], d.nodes[nodeC])
	}
	for _, p := range all {
		if t, err := p.cpu(); err == nil { // one that has ended has used nothing
			used[p.name] = t
		}
	}
	return used
}

// cpuPer tells how much of each server's time a request took; on a busy machine that says more than the rate. Requests
// are counted as if the whole time had gone at the measured rate.
func cpuPer(before, after map[string]time.Duration, requests float64) string {
	text := ""
	for _, name := range slices.Sorted(maps.Keys(after)) {
		if each := time.Duration(float64(after[name]-before[name]) / requests); each > 500*time.Nanosecond {
			text += fmt.Sprintf("  %s %v", name, each.Round(100*time.Nanosecond))
		}
	}
	return text
}

// rest waits until nobody is busy with what an earlier run left: copies are complete, the disk has all.
func (b *bench) rest(ctx context.Context, next side) error {
	if b.volumes {
		if _, err := b.deployment.waitLag(ctx, groupOf("copied"), 5*time.Minute); err != nil {
			return err
		}
	}
	for name := range b.extra {
		if _, err := b.deployment.waitLag(ctx, groupOf(name), 5*time.Minute); err != nil {
			return err
		}
	}
	return settle(b.dir)
}

// endpoint is where a side's volume is served; servers and volumes are made when first asked for.
func (b *bench) endpoint(ctx context.Context, s side) (endpoint, error) {
	if s.isPeer() {
		return b.peer(ctx, s)
	}
	switch s {
	case synced:
		return b.copiedAs(ctx, "synced", "--mode sync")
	case syncedDirect:
		if _, err := b.copiedAs(ctx, "synced", "--mode sync"); err != nil {
			return endpoint{}, err
		}
		return b.deployment.direct(nodeA, "synced"), nil
	case packed:
		return b.copiedAs(ctx, "packed", "--compress s2")
	}
	if err := b.fioVolumes(ctx); err != nil {
		return endpoint{}, err
	}
	switch s {
	case copied:
		return b.deployment.viaGateway("copied"), nil
	case copiedDirect:
		return b.deployment.direct(nodeA, "copied"), nil
	case journaledDirect:
		return b.deployment.direct(nodeA, "journaled"), nil
	case plainDirect:
		return b.deployment.direct(nodeA, "plain"), nil
	}
	return endpoint{}, fmt.Errorf("nothing serves %q", s)
}

func (b *bench) peer(ctx context.Context, s side) (endpoint, error) {
	if e, ok := b.peers[s]; ok {
		return e, nil
	}
	if s == mirroring {
		e, err := b.mirrored(ctx)
		if err == nil {
			b.peers[s] = e
		}
		return e, err
	}
	file, starter := filepath.Join(b.dir, "nbdkit.raw"), startNbdkit
	if s == qemuNbd {
		file, starter = filepath.Join(b.dir, "qemu-nbd.raw"), startQemuNbd
	}
	if err := prepare(file, b.size, b.fill); err != nil {
		return endpoint{}, err
	}
	p, e, err := starter(ctx, b.dir, file)
	if p != nil {
		b.processes = append(b.processes, p)
	}
	if err != nil {
		return e, err
	}
	b.peers[s] = e
	return e, nil
}

// system starts the deployment when it is first needed.
func (b *bench) system(ctx context.Context) (*deployment, error) {
	if b.deployment != nil {
		return b.deployment, nil
	}
	dir := filepath.Join(b.dir, "g")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	d, err := deploy(ctx, b.gantline, dir)
	if err != nil {
		return nil, err
	}
	b.deployment = d
	return d, nil
}

// fioVolumes makes three volumes on node a: plain is in no group; journaled is in a group that is suspended, so its
// writes are journaled and not copied; copied is journaled and copied to node c, and hosts reach it by the gateway too.
func (b *bench) fioVolumes(ctx context.Context) error {
	if b.volumes {
		return nil
	}
	d, err := b.system(ctx)
	if err != nil {
		return err
	}
	if err := b.volume(ctx, nodeA, "plain", b.size); err != nil {
		return err
	}
	for _, name := range []string{"journaled", "copied"} {
		if err := b.pair(ctx, name, b.size); err != nil {
			return err
		}
	}
	if err := d.commands(ctx, "group suspend "+groupOf("journaled"), "vvol create copied --volume a/copied"); err != nil {
		return err
	}
	b.volumes = true
	return nil
}

// volume makes a volume on a file that was prepared as the peers' files are.
func (b *bench) volume(ctx context.Context, node, name string, size int64) error {
	file := filepath.Join(b.dir, node+"-"+name+".raw")
	if err := prepare(file, size, b.fill); err != nil {
		return err
	}
	return b.deployment.commands(ctx, fmt.Sprintf("volume create %s/%s --size %d --device %s", node, name, size, file))
}

// pair makes a volume on node a, an empty one on node c, and a group of the same name that copies. It returns when the
// initial copy is complete.
func (b *bench) pair(ctx context.Context, name string, size int64, flags ...string) error {
	if err := b.volume(ctx, nodeA, name, size); err != nil {
		return err
	}
	return b.copies(ctx, name, size, flags...)
}

// copies makes the rest of a pair whose primary volume is there.
func (b *bench) copies(ctx context.Context, name string, size int64, flags ...string) error {
	return b.deployment.commands(ctx,
		fmt.Sprintf("volume create %s/%s --size %d", nodeC, name, size),
		fmt.Sprintf("group create %s --primary %s --secondary %s %s", groupOf(name), nodeA, nodeC, strings.Join(flags, " ")),
		fmt.Sprintf("pair add %[1]s %[3]s/%[2]s %[4]s/%[2]s", groupOf(name), name, nodeA, nodeC))
}

// groupOf names the group of a volume. Its journals have the group's name, and share a namespace with volumes.
func groupOf(volume string) string { return "g-" + volume }

// lagCase loads the copied volume with 80 % of what it takes at most and times the secondary's catching up.
func lagCase(ctx context.Context, b *bench) error {
	e, err := b.endpoint(ctx, copied)
	if err != nil {
		return err
	}
	job := fioJob{rw: "randwrite", block: 4096, depth: 32}
	highest, err := runFio(ctx, e, job, b.size, b.time, 1)
	if err != nil {
		return err
	}
	job.rate = int(highest.iops * 0.8)
	var lags []float64
	for turn := range b.runs {
		if err := b.rest(ctx, copied); err != nil {
			return err
		}
		r, err := runFio(ctx, e, job, b.size, b.time, turn+1)
		if err != nil {
			return err
		}
		lag, err := b.deployment.waitLag(ctx, groupOf("copied"), time.Minute)
		if err != nil {
			return err
		}
		progress("  lag %d/%d  %s, lag %v", turn+1, b.runs, figure(r.iops, "/s"), lag)
		lags = append(lags, lag.Seconds()*1e3)
	}
	b.table.below(fmt.Sprintf("lag after %d writes/s", job.rate), "ms", median(lags), 1000)
	return nil
}

// memoryCase loads the copied volume and samples the primary's memory, then again with the secondary frozen: its
// connections stay open and nothing answers, which is how a dead link looks.
func memoryCase(ctx context.Context, b *bench) error {
	e, err := b.endpoint(ctx, copied)
	if err != nil {
		return err
	}
	const mega = 1e6
	up, err := b.peakMemory(ctx, e)
	if err != nil {
		return err
	}
	b.table.below("memory, link up", "MB", float64(up)/mega, float64(b.memoryCap)/mega)
	secondary := b.deployment.nodes[nodeC]
	if err := secondary.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	dead, err := b.peakMemory(ctx, e)
	if err := errors.Join(err, secondary.signal(syscall.SIGCONT)); err != nil {
		return err
	}
	b.table.below("memory, link dead", "MB", float64(dead)/mega, float64(b.memoryCap)/mega)

	// The outage may have filled the journal; the cases behind this one need the copy in step again.
	var g group
	if err := b.deployment.get(ctx, "/v1/groups/"+groupOf("copied"), &g); err != nil {
		return err
	}
	if g.State == "suspended" {
		if err := b.deployment.commands(ctx, "group resume "+groupOf("copied")+" --allow-inconsistent"); err != nil {
			return err
		}
	}
	return b.rest(ctx, copied)
}

// peakMemory runs a full load for some time and returns the most memory that node a had meanwhile.
func (b *bench) peakMemory(ctx context.Context, e endpoint) (peak int64, err error) {
	done := make(chan error, 1)
	go func() {
		_, err := runFio(ctx, e, fioJob{rw: "randwrite", block: 4096, depth: 32}, b.size, 3*b.time, 1)
		done <- err
	}()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		now, sampleErr := b.deployment.nodes[nodeA].memory()
		peak = max(peak, now)
		if sampleErr != nil {
			return 0, errors.Join(sampleErr, <-done)
		}
		select {
		case err := <-done:
			return peak, err
		case <-tick.C:
		}
	}
}

func progress(format string, a ...any) { fmt.Fprintf(os.Stderr, format+"\n", a...) }
