package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Ways of copying other than the plain one, and the peer's.
const (
	synced       side = "gateway, journal, sync copy"
	syncedDirect side = "node, journal, sync copy" // like the mirror: nothing between the host and who copies
	packed       side = "gateway, journal, copy by s2"
	mirroring    side = "blockdev-mirror, blocking"
)

func copyCases() []testCase {
	write := fioJob{rw: "randwrite", block: 4096}
	sync, async := write, write
	sync.depth, async.depth = 8, 32
	return []testCase{
		ioCase("sync-4k-d8", "4 KiB random writes, 8 in flight, answered when they are at both sides", sync,
			goal{syncedDirect, mirroring, 2.0}, goal{synced, mirroring, 0}),
		ioCase("compress-4k-d32", "4 KiB random writes of random bytes, 32 in flight, the copy compressed in vain", async, goal{packed, copied, 0.9}),
		{name: "catch-up", about: "the backlog of an outage goes over a line of 60 MB/s, under 1,000 writes/s", run: catchUp},
	}
}

// copiedAs makes a volume copied in another way than the plain one, when it is first asked for.
func (b *bench) copiedAs(ctx context.Context, name string, flags string) (endpoint, error) {
	d, err := b.system(ctx)
	if err != nil {
		return endpoint{}, err
	}
	if !b.extra[name] {
		if err := b.pair(ctx, name, b.size, flags); err != nil {
			return endpoint{}, err
		}
		if err := d.commands(ctx, fmt.Sprintf("vvol create %[1]s --volume %[2]s/%[1]s", name, nodeA)); err != nil {
			return endpoint{}, err
		}
		b.extra[name] = true
	}
	return d.viaGateway(name), nil
}

// mirrored is a volume that blockdev-mirror keeps in step with another process, write by write.
func (b *bench) mirrored(ctx context.Context) (e endpoint, err error) {
	file, copy := filepath.Join(b.dir, "mirrored.raw"), filepath.Join(b.dir, "mirrored-copy.raw")
	if err := prepare(file, b.size, b.fill); err != nil {
		return e, err
	}
	if err := os.WriteFile(copy, nil, 0o644); err != nil {
		return e, err
	}
	if err := os.Truncate(copy, b.size); err != nil {
		return e, err
	}
	target, err := startStorageDaemon(ctx, b.dir, "mirrored-copy", copy)
	if target != nil && target.process != nil {
		b.processes = append(b.processes, target.process)
	}
	if err != nil {
		return e, err
	}
	source, err := startStorageDaemon(ctx, b.dir, "mirrored", file)
	if source != nil && source.process != nil {
		b.processes = append(b.processes, source.process)
	}
	if err != nil {
		return e, err
	}
	if err := source.mirror(target.endpoint, writeBlocking); err != nil {
		return e, err
	}
	return source.endpoint, source.qmp.waitStatus("move", "ready", moveLimit)
}

// lineRate is what the line of the catch-up case carries, in bytes a second; less than any disk here.
const lineRate = 60_000_000

// catchUp cuts the line to a secondary under a load, brings it back and times how the backlog goes over. The line itself
// is measured in the same run; the load's latency then is compared with that of before the outage.
func catchUp(ctx context.Context, b *bench) error {
	d, err := b.system(ctx)
	if err != nil {
		return err
	}
	line, err := newLink(lineRate)
	if err != nil {
		return err
	}
	defer line.close()
	carries, err := line.probe(2 * time.Second)
	if err != nil {
		return err
	}
	port, err := freePort() // the line must lead there before the manager looks for the new node at its end
	if err != nil {
		return err
	}
	line.lead(port)
	far, _, err := d.serve(ctx, "node", "far", "--site", "remote", "--listen", port, "--advertise", line.address(),
		"--nbd-unix", d.socket("far"), "--memory", nodeMemory)
	if err != nil {
		return err
	}
	defer far.stop()
	const name, size = "caught", 256 << 20
	if err := b.volume(ctx, nodeA, name, size); err != nil {
		return err
	}
	if err := d.commands(ctx, fmt.Sprintf("volume create far/%s --size %d", name, size),
		fmt.Sprintf("group create %s --primary %s --secondary far", groupOf(name), nodeA),
		fmt.Sprintf("pair add %[1]s a/%[2]s far/%[2]s", groupOf(name), name),
		fmt.Sprintf("vvol create %[1]s --volume a/%[1]s", name)); err != nil {
		return err
	}
	var rates, ratios []float64
	for turn := range b.runs {
		rate, before, during, err := b.outage(ctx, line, name)
		if err != nil {
			return err
		}
		progress("  catch-up %d/%d  %.1f MB/s of %.1f; p99 %v before, %v meanwhile", turn+1, b.runs, rate/1e6, carries/1e6, before.p99, during.p99)
		rates, ratios = append(rates, rate/1e6), append(ratios, float64(during.p99)/float64(before.p99))
	}
	b.table.atLeast("catch-up after an outage", "MB/s", median(rates), carries/1e6, "the line alone", 0.7)
	b.table.below("host's p99 while it catches up, times that of before", "", median(ratios), 2)
	return nil
}

// freePort is an address on loopback that nobody listens at just now.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// outage cuts the line until a backlog of several seconds has come together. rate is in bytes a second over the line.
func (b *bench) outage(ctx context.Context, line *link, name string) (rate float64, before, during stretch, err error) {
	d, e := b.deployment, b.deployment.viaGateway(name)
	if _, err = d.waitLag(ctx, groupOf(name), time.Minute); err != nil {
		return rate, before, during, err
	}
	if err = settle(b.dir); err != nil {
		return rate, before, during, err
	}
	l, err := startLoad(e, 32, 1000)
	if err != nil {
		return rate, before, during, err
	}
	defer func() { err = errors.Join(err, l.stop()) }()
	time.Sleep(time.Second)
	begin := time.Now()
	time.Sleep(b.time)
	if before, err = l.between(begin, time.Now()); err != nil {
		return rate, before, during, err
	}
	line.set(true)
	if _, err = runFio(ctx, e, fioJob{rw: "write", block: 128 << 10, depth: 4, rate: 800}, 256<<20, 3*time.Second, 1); err != nil {
		return rate, before, during, err
	}
	was, err := d.wanBytes(ctx, groupOf(name))
	if err != nil {
		return rate, before, during, err
	}
	back := time.Now()
	line.set(false)
	if _, err = d.waitLag(ctx, groupOf(name), 2*time.Minute); err != nil {
		return rate, before, during, err
	}
	took := time.Since(back)
	now, err := d.wanBytes(ctx, groupOf(name))
	if err != nil {
		return rate, before, during, err
	}
	during, err = l.between(back, back.Add(took))
	return float64(now-was) / took.Seconds(), before, during, err
}
