package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// moveLimit bounds one move; one that takes longer has not converged.
const moveLimit = 2 * time.Minute

func moveCases() []testCase {
	return []testCase{
		{name: "move-idle", about: "a volume that nobody writes to, moved to another process", peers: true, run: idleMove},
		{name: "move-pause", about: "the longest a host waits while a volume changes hands, at 5,000 writes/s", peers: true, run: pauseOfMove},
		{name: "move-pause-20", about: "the pauses of many moves of a group of three volumes, at 5,000 writes/s in all", peers: true, run: pausesOfMoves},
		{name: "move-steady", about: "a volume moved under 5,000 writes/s", run: steadyMove},
		{name: "move-p99", about: "what hosts feel of the copy behind a move, at 5,000 writes/s", run: copyOfMove},
		{name: "move-sparse", about: "100 GiB with 1 GiB of data in them, beside 1 GiB full of data", run: sparseMove},
		{name: "move-full", about: "a volume moved under as many writes as it takes", peers: true, run: fullMove},
	}
}

// mover is one way of moving a volume, ours or the peer's. Each move has a volume of its own.
type mover interface {
	// prepare makes the volume and returns where its host finds it, before, during and after the move.
	prepare(ctx context.Context) (endpoint, error)
	// fill starts the move and returns when all data is at the target. For the peer this comes before the hand-over.
	fill(ctx context.Context) error
	// handOver makes the target the one that serves. Ours has done that already.
	handOver(ctx context.Context) error
	// pauseMS is what the mover itself says of the pause; 0: it says nothing.
	pauseMS() float64
	// handedOver is when fill has made the target the one that serves; zero: handOver does that.
	handedOver() time.Time
	remove(ctx context.Context) error
}

func (b *bench) movers(mode string) map[string]func() mover {
	m := map[string]func() mover{"blockdev-mirror": func() mover { return &mirror{b: b, mode: mode} }}
	if !b.peersOnly {
		m["gantline"] = func() mover { return &migration{b: b} }
	}
	return m
}

// mirror moves with blockdev-mirror between two qemu-storage-daemons.
type mirror struct {
	b              *bench
	mode           string
	name           string // of its files and processes; "": mirror
	size           int64  // 0: that of all volumes that are moved
	files          [2]string
	source, target *storageDaemon
}

func (m *mirror) prepare(ctx context.Context) (e endpoint, err error) {
	name, size := cmp.Or(m.name, "mirror"), cmp.Or(m.size, m.b.moveSize)
	m.files = [2]string{filepath.Join(m.b.dir, name+"-a.raw"), filepath.Join(m.b.dir, name+"-b.raw")}
	if err := prepare(m.files[0], size, m.b.fill); err != nil {
		return e, err
	}
	// The target begins as a new volume does on our side: the right size, and nothing in it.
	if err := os.WriteFile(m.files[1], nil, 0o644); err != nil {
		return e, err
	}
	if err := os.Truncate(m.files[1], size); err != nil {
		return e, err
	}
	if m.target, err = startStorageDaemon(ctx, m.b.dir, name+"-b", m.files[1]); err != nil {
		return e, err
	}
	m.source, err = startStorageDaemon(ctx, m.b.dir, name+"-a", m.files[0])
	if err != nil {
		return e, err
	}
	return m.source.endpoint, settle(m.b.dir)
}

func (m *mirror) fill(context.Context) error {
	if err := m.source.mirror(m.target.endpoint, m.mode); err != nil {
		return err
	}
	return m.source.qmp.waitStatus("move", "ready", moveLimit)
}

func (m *mirror) handOver(context.Context) error { return m.source.handOver(moveLimit) }

func (m *mirror) pauseMS() float64 { return 0 }

func (m *mirror) handedOver() time.Time { return time.Time{} }

func (m *mirror) remove(context.Context) error {
	return errors.Join(m.source.stop(), m.target.stop(), os.RemoveAll(m.files[0]), os.RemoveAll(m.files[1]))
}

// migration moves with Gantline, from node a to node b, a volume that is copied to node c all along.
type migration struct {
	b     *bench
	name  string
	pause float64
	pend  time.Time // when the target began to hold what hosts send
	run   time.Time // when it began to serve them
}

func (m *migration) prepare(ctx context.Context) (e endpoint, err error) {
	d, err := m.b.system(ctx)
	if err != nil {
		return e, err
	}
	m.b.moves++
	m.name = fmt.Sprintf("move%d", m.b.moves)
	if err := m.b.pair(ctx, m.name, m.b.moveSize); err != nil {
		return e, err
	}
	if err := d.commands(ctx, fmt.Sprintf("vvol create %[1]s --volume %[2]s/%[1]s", m.name, nodeA)); err != nil {
		return e, err
	}
	return d.viaGateway(m.name), settle(m.b.dir)
}

// fill does the whole move: ours changes hands first and fills the target behind the hosts' backs.
func (m *migration) fill(ctx context.Context) error {
	begin := time.Now()
	limit := fmt.Sprintf("--timeout=%v", moveLimit)
	if _, err := m.b.deployment.cli(ctx, 2*moveLimit, "migrate", "start", groupOf(m.name), "--to", nodeB, limit); err != nil {
		return err
	}
	shown, err := m.b.deployment.migration(ctx, groupOf(m.name)+"-1")
	if err != nil {
		return err
	}
	m.pause, m.pend, m.run = *shown.PauseMS, shown.at("pend"), shown.at("run")
	steps := ""
	for _, s := range shown.Steps {
		steps += fmt.Sprintf(" %s %.3f", s.Step, s.At.Sub(begin).Seconds())
	}
	progress("  steps, in seconds from the start:%s", steps)
	return nil
}

// moved is what the benchmark reads of `migrate show`.
type moved struct {
	Phase   string   `json:"phase"`
	PauseMS *float64 `json:"pause_ms"`
	Steps   []struct {
		Step string    `json:"step"`
		At   time.Time `json:"at"`
	} `json:"steps"`
}

// migration is a move that has been filled; one that is in another phase is an error.
func (d *deployment) migration(ctx context.Context, id string) (m moved, err error) {
	if err := d.get(ctx, "/v1/migrations/"+id, &m); err != nil {
		return m, err
	}
	if m.Phase != "filled" || m.PauseMS == nil {
		return m, fmt.Errorf("migration %s ended in phase %q", id, m.Phase)
	}
	return m, nil
}

// at is when a step was complete; zero: never.
func (m moved) at(step string) time.Time {
	for _, s := range m.Steps {
		if s.Step == step {
			return s.At
		}
	}
	return time.Time{}
}

func (m *migration) handOver(context.Context) error { return nil }

func (m *migration) pauseMS() float64 { return m.pause }

func (m *migration) handedOver() time.Time { return m.pend }

// remove commits the move and deletes all that it left, so that many moves fit on the disk.
func (m *migration) remove(ctx context.Context) error {
	if m.name == "" || m.b.deployment == nil {
		return nil
	}
	names := strings.NewReplacer("NAME", m.name, "GROUP", groupOf(m.name))
	m.b.tidy(ctx, strings.Split(names.Replace("migrate commit GROUP --yes\nvvol delete NAME --yes\ngroup delete GROUP --yes\n"+
		"volume delete a/NAME --yes\nvolume delete b/NAME --yes\nvolume delete c/NAME --yes\n"+
		"journal delete a/GROUP --yes\njournal delete b/GROUP --yes\njournal delete c/GROUP --yes"), "\n")...)
	os.Remove(filepath.Join(m.b.dir, nodeA+"-"+m.name+".raw"))
	return nil
}

// tidy runs commands that take away what is not needed any more.
func (b *bench) tidy(ctx context.Context, lines ...string) {
	for _, line := range lines {
		err := error(nil)
		for range 20 { // the host's connection has been closed, of which the gateway may not have heard yet
			_, err = b.deployment.cli(ctx, time.Minute, strings.Fields(line)...)
			if err == nil || !strings.Contains(err.Error(), "connections to it open") {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if err != nil && !strings.Contains(err.Error(), "does not exist") { // it went with something else
			progress("  note: %v", err)
		}
	}
}

// eachTurn runs one measurement on every mover by turns; the medians of its figures are by mover.
func (b *bench) eachTurn(ctx context.Context, name, mirrorMode string, measure func(mover, endpoint) ([]float64, error)) (map[string][]float64, error) {
	all := map[string][][]float64{}
	movers := b.movers(mirrorMode)
	for turn := range b.runs {
		for _, who := range []string{"gantline", "blockdev-mirror"} {
			if movers[who] == nil {
				continue
			}
			m := movers[who]()
			values, err := func() (v []float64, err error) {
				defer func() { err = errors.Join(err, m.remove(ctx)) }()
				e, err := m.prepare(ctx)
				if err != nil {
					return nil, err
				}
				return measure(m, e)
			}()
			if err != nil {
				return nil, fmt.Errorf("%s: %w", who, err)
			}
			progress("  %s %d/%d  %-16s %.4g", name, turn+1, b.runs, who, values)
			all[who] = append(all[who], values)
		}
	}
	return medians(all), nil
}

func medians(all map[string][][]float64) map[string][]float64 {
	result := map[string][]float64{}
	for who, turns := range all {
		for i := range turns[0] {
			var column []float64
			for _, values := range turns {
				column = append(column, values[i])
			}
			result[who] = append(result[who], median(column))
		}
	}
	return result
}

func idleMove(ctx context.Context, b *bench) error {
	rate, err := b.eachTurn(ctx, "move-idle", background, func(m mover, _ endpoint) ([]float64, error) {
		begin := time.Now()
		if err := m.fill(ctx); err != nil {
			return nil, err
		}
		seconds := time.Since(begin).Seconds()
		return []float64{float64(b.moveSize) / 1e6 / seconds}, m.handOver(ctx)
	})
	if err != nil {
		return err
	}
	if b.peersOnly {
		b.table.absolute("move-idle blockdev-mirror", "MB/s", rate["blockdev-mirror"][0])
		return nil
	}
	b.table.atLeast("move-idle", "MB/s", rate["gantline"][0], rate["blockdev-mirror"][0], "blockdev-mirror", 0.8)
	return nil
}

// pauseOfMove measures what a host sees, on both sides in the same way: the longest time between two answers. The
// mirror blocks writes until both sides have them, without which it is often never ready under this load.
func pauseOfMove(ctx context.Context, b *bench) error {
	pause, err := b.eachTurn(ctx, "move-pause", writeBlocking, func(m mover, e endpoint) ([]float64, error) {
		l, err := startLoad(e, 32, 5000)
		if err != nil {
			return nil, err
		}
		defer l.stop()
		time.Sleep(time.Second)
		begin := time.Now()
		if err := m.fill(ctx); err != nil {
			return nil, err
		}
		// Each is watched over its hand-over and the second behind it. Ours changes hands before it fills, the peer after.
		from, to := m.handedOver().Add(-100*time.Millisecond), m.handedOver().Add(time.Second)
		if m.handedOver().IsZero() {
			// Nobody completes a mirror in the very moment it is ready: the writes of a second wait for its flush.
			time.Sleep(time.Second)
			from = time.Now()
			if err := m.handOver(ctx); err != nil {
				return nil, err
			}
			to = time.Now().Add(time.Second)
		}
		time.Sleep(time.Until(to))
		s, err := l.between(from, to)
		if err != nil {
			return nil, err
		}
		all, err := l.between(begin, time.Now())
		if err != nil {
			return nil, err
		}
		progress("  longest gap %v at the hand-over; in all %v, %.3f s from the start", s.longest, all.longest, all.at.Seconds())
		return []float64{s.longest.Seconds() * 1e3, m.pauseMS(), all.longest.Seconds() * 1e3}, l.stop()
	})
	if err != nil {
		return err
	}
	theirs := pause["blockdev-mirror"][0]
	if b.peersOnly {
		b.table.absolute("move-pause blockdev-mirror", "ms", theirs)
		return nil
	}
	ours := pause["gantline"]
	b.table.below("move-pause, longest gap at the host", "ms", ours[0], 25)
	b.table.atMost("move-pause, longest gap at the host", "ms", ours[0], theirs, "blockdev-mirror", 0.25)
	b.table.absolute("move-pause, as reported by the move", "ms", ours[1])
	b.table.atMost("move-pause, longest gap in the whole move", "ms", ours[2], pause["blockdev-mirror"][2], "blockdev-mirror", 0)
	return nil
}

// aroundMove loads the volume, moves it, and returns the host's figures before the move and in a part of it.
func (b *bench) aroundMove(ctx context.Context, m mover, e endpoint, depth, rate int,
	part func(from, to time.Time) (time.Time, time.Time)) (before, during stretch, err error) {
	l, err := startLoad(e, depth, rate)
	if err != nil {
		return before, during, err
	}
	defer l.stop()
	time.Sleep(time.Second)
	begin := time.Now()
	time.Sleep(b.time)
	moved := time.Now()
	moveErr := m.fill(ctx)
	end := time.Now()
	if before, err = l.between(begin, moved); err != nil {
		return before, during, err
	}
	if moveErr != nil {
		return before, during, moveErr
	}
	if during, err = l.between(part(moved, end)); err != nil {
		return before, during, err
	}
	return before, during, l.stop()
}

func steadyMove(ctx context.Context, b *bench) error {
	before, during, err := b.p99OfMoves(ctx, "move-steady", func(_ *migration, from, to time.Time) (time.Time, time.Time) { return from, to })
	if err != nil {
		return err
	}
	b.table.atMost("move-steady, host p99 during", "ms", during, before, "before", 3)
	return nil
}

// copyOfMove is steadyMove without the hand-over: from the first answer of the target on, while it fetches what is absent.
func copyOfMove(ctx context.Context, b *bench) error {
	const settled = 100 * time.Millisecond // what was held has been answered
	before, during, err := b.p99OfMoves(ctx, "move-p99", func(m *migration, _, to time.Time) (time.Time, time.Time) {
		return m.run.Add(settled), to
	})
	if err != nil {
		return err
	}
	b.table.atMost("move-p99, host p99 while the target is filled", "ms", during, before, "before", 2)
	return nil
}

// p99OfMoves returns the medians of a host's p99 before a move and in that part of it which the caller chooses, in ms.
func (b *bench) p99OfMoves(ctx context.Context, name string, part func(m *migration, from, to time.Time) (time.Time, time.Time)) (float64, float64, error) {
	var before, during []float64
	for turn := range b.runs {
		m := &migration{b: b}
		err := func() (err error) {
			defer func() { err = errors.Join(err, m.remove(ctx)) }()
			e, err := m.prepare(ctx)
			if err != nil {
				return err
			}
			x, y, err := b.aroundMove(ctx, m, e, 32, 5000, func(from, to time.Time) (time.Time, time.Time) { return part(m, from, to) })
			if err != nil {
				return err
			}
			progress("  %s %d/%d  p99 %v before, %v during; %.0f and %.0f writes/s", name, turn+1, b.runs, x.p99, y.p99, x.perSecond, y.perSecond)
			before = append(before, x.p99.Seconds()*1e3)
			during = append(during, y.p99.Seconds()*1e3)
			return nil
		}()
		if err != nil {
			return 0, 0, err
		}
	}
	return median(before), median(during), nil
}

// fullMove moves under a writer without limit. Ours must end; the peer, which need not, is shown over a fixed time.
func fullMove(ctx context.Context, b *bench) error {
	if !b.peersOnly {
		var before, during []float64
		for turn := range b.runs {
			m := &migration{b: b}
			err := func() (err error) {
				defer func() { err = errors.Join(err, m.remove(ctx)) }()
				e, err := m.prepare(ctx)
				if err != nil {
					return err
				}
				x, y, err := b.aroundMove(ctx, m, e, 32, 0, func(from, to time.Time) (time.Time, time.Time) { return from, to })
				if err != nil {
					return err
				}
				progress("  move-full %d/%d  %.0f writes/s before, %.0f during", turn+1, b.runs, x.perSecond, y.perSecond)
				before, during = append(before, x.perSecond), append(during, y.perSecond)
				return nil
			}()
			if err != nil {
				return err
			}
		}
		b.table.atLeast("move-full, writes during", "/s", median(during), median(before), "before", 0.4)
	}
	return fullMirror(ctx, b)
}

// fullMirror shows what blockdev-mirror leaves to an unlimited writer while it tries to keep up.
func fullMirror(ctx context.Context, b *bench) (err error) {
	m := &mirror{b: b}
	defer func() { err = errors.Join(err, m.remove(ctx)) }()
	e, err := m.prepare(ctx)
	if err != nil {
		return err
	}
	l, err := startLoad(e, 32, 0)
	if err != nil {
		return err
	}
	defer l.stop()
	time.Sleep(b.time)
	begin := time.Now()
	if err := m.source.mirror(m.target.endpoint, background); err != nil {
		return err
	}
	limit := 4 * b.time
	converged := m.source.qmp.waitStatus("move", "ready", limit) == nil
	end := time.Now()
	before, err := l.between(begin.Add(-b.time/2), begin)
	if err != nil {
		return err
	}
	during, err := l.between(begin, end)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("move-full of blockdev-mirror, not ready in %v", limit)
	if converged {
		what = fmt.Sprintf("move-full of blockdev-mirror, ready in %v", end.Sub(begin).Round(time.Millisecond))
	}
	b.table.atLeast(what, "/s", during.perSecond, before.perSecond, "before", 0)
	return nil
}
