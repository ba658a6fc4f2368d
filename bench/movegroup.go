package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// What the case of many moves works on: a group of so many volumes, of 1 GiB together, under so many writes a second together.
const (
	manyVolumes = 3
	manySize    = 1 << 30 / manyVolumes &^ (1<<20 - 1) // bytes of one volume
	manyWrites  = 5000
	manyDepth   = 11 // writes in flight on one volume
)

// pausesOfMoves moves a group forth and back, and the peer's volumes as often, under hosts that go on writing. A pause is the
// longest time between two answers of any one volume.
func pausesOfMoves(ctx context.Context, b *bench) error {
	theirs, err := b.handOversOfMirrors(ctx)
	if err != nil {
		return fmt.Errorf("blockdev-mirror: %w", err)
	}
	const row = "move-pause-20, "
	if b.peersOnly {
		b.table.absolute(row+"median of blockdev-mirror", "ms", median(theirs))
		b.table.absolute(row+"worst of blockdev-mirror", "ms", slices.Max(theirs))
		return nil
	}
	for _, strategy := range []string{"switch-first", "copy-first"} {
		ours, err := b.pausesForthAndBack(ctx, strategy)
		if err != nil {
			return fmt.Errorf("%s: %w", strategy, err)
		}
		of := fmt.Sprintf(" of %d, %s", b.moveCount, strategy)
		b.table.below(row+"median"+of, "ms", median(ours), 10)
		b.table.below(row+"worst"+of, "ms", slices.Max(ours), 50)
		b.table.atMost(row+"median"+of, "ms", median(ours), median(theirs), "blockdev-mirror", 0)
		b.table.atMost(row+"worst"+of, "ms", slices.Max(ours), slices.Max(theirs), "blockdev-mirror", 0)
	}
	return nil
}

// hosts are the loads of all volumes of the case.
type hosts []*load

func startHosts(ends []endpoint) (h hosts, err error) {
	for _, e := range ends {
		l, err := startLoad(e, manyDepth, manyWrites/len(ends))
		if err != nil {
			return nil, errors.Join(err, h.stop())
		}
		h = append(h, l)
	}
	return h, nil
}

func (h hosts) stop() (err error) {
	for _, l := range h {
		err = errors.Join(err, l.stop())
	}
	return err
}

// longest is the longest that one of the volumes was silent.
func (h hosts) longest(from, to time.Time) (longest time.Duration, err error) {
	for _, l := range h {
		s, err := l.between(from, to)
		if err != nil {
			return 0, err
		}
		longest = max(longest, s.longest)
	}
	return longest, nil
}

// pausesForthAndBack moves one group again and again, between nodes a and b, and returns the pauses in ms. Each move begins right
// after the one before has copied all of the group's data.
func (b *bench) pausesForthAndBack(ctx context.Context, strategy string) (pauses []float64, err error) {
	d, err := b.system(ctx)
	if err != nil {
		return nil, err
	}
	b.moves++
	group := fmt.Sprintf("g-many%d", b.moves)
	var names []string
	var ends []endpoint
	commands := []string{fmt.Sprintf("group create %s --primary %s --secondary %s", group, nodeA, nodeC)}
	for i := range manyVolumes {
		name := fmt.Sprintf("many%d-%d", b.moves, i)
		if err := b.volume(ctx, nodeA, name, manySize); err != nil {
			return nil, err
		}
		commands = append(commands, fmt.Sprintf("volume create %s/%s --size %d", nodeC, name, int64(manySize)),
			fmt.Sprintf("pair add %[1]s %[3]s/%[2]s %[4]s/%[2]s", group, name, nodeA, nodeC),
			fmt.Sprintf("vvol create %[1]s --volume %[2]s/%[1]s", name, nodeA))
		names, ends = append(names, name), append(ends, d.viaGateway(name))
	}
	if err := d.commands(ctx, commands...); err != nil {
		return nil, err
	}
	var h hosts
	at := nodeA
	defer func() {
		err = errors.Join(err, h.stop())
		b.removeGroup(ctx, group, names)
	}()
	if h, err = startHosts(ends); err != nil {
		return nil, err
	}
	time.Sleep(time.Second)
	for n := range b.moveCount {
		to := nodeB
		if at == nodeB {
			to = nodeA
		}
		limit := fmt.Sprintf("--timeout=%v", moveLimit)
		if _, err := d.cli(ctx, 2*moveLimit, "migrate", "start", group, "--to", to, "--strategy", strategy, limit); err != nil {
			return nil, err
		}
		m, err := d.migration(ctx, fmt.Sprintf("%s-%d", group, n+1))
		if err != nil {
			return nil, err
		}
		from, until := m.at("pend").Add(-100*time.Millisecond), m.at("pend").Add(time.Second)
		time.Sleep(time.Until(until))
		longest, err := h.longest(from, until)
		if err != nil {
			return nil, err
		}
		progress("  move-pause-20 %s %d/%d  longest gap %v, reported %.1f ms", strategy, n+1, b.moveCount, longest, *m.PauseMS)
		pauses = append(pauses, longest.Seconds()*1e3)
		lines := []string{"migrate commit " + group + " --yes"}
		for _, name := range names {
			lines = append(lines, "volume delete "+at+"/"+name+" --yes")
		}
		b.tidy(ctx, append(lines, "journal delete "+at+"/"+group+" --yes")...)
		at = to
	}
	return pauses, nil
}

// removeGroup takes away a group, wherever it is.
func (b *bench) removeGroup(ctx context.Context, group string, names []string) {
	var lines []string
	for _, name := range names {
		lines = append(lines, "vvol delete "+name+" --yes")
	}
	lines = append(lines, "group delete "+group+" --yes")
	for _, node := range []string{nodeA, nodeB, nodeC} {
		for _, name := range names {
			lines = append(lines, "volume delete "+node+"/"+name+" --yes")
		}
		lines = append(lines, "journal delete "+node+"/"+group+" --yes")
	}
	b.tidy(ctx, lines...)
	for _, name := range names {
		_ = os.Remove(filepath.Join(b.dir, nodeA+"-"+name+".raw"))
	}
}

// handOversOfMirrors is the same for the peer: as many volumes, each with its own pair of processes, all handed over at once.
func (b *bench) handOversOfMirrors(ctx context.Context) (pauses []float64, err error) {
	for n := range b.moveCount {
		longest, err := b.handOverOfMirrors(ctx)
		if err != nil {
			return nil, err
		}
		progress("  move-pause-20 blockdev-mirror %d/%d  longest gap %v", n+1, b.moveCount, longest)
		pauses = append(pauses, longest.Seconds()*1e3)
	}
	return pauses, nil
}

func (b *bench) handOverOfMirrors(ctx context.Context) (longest time.Duration, err error) {
	var all []*mirror
	var ends []endpoint
	defer func() {
		for _, m := range all {
			err = errors.Join(err, m.remove(ctx))
		}
	}()
	for i := range manyVolumes {
		m := &mirror{b: b, mode: writeBlocking, name: fmt.Sprintf("many-%d", i), size: manySize}
		all = append(all, m)
		e, err := m.prepare(ctx)
		if err != nil {
			return 0, err
		}
		ends = append(ends, e)
	}
	h, err := startHosts(ends)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, h.stop()) }()
	for _, m := range all {
		if err := m.fill(ctx); err != nil {
			return 0, err
		}
	}
	time.Sleep(time.Second) // see pauseOfMove
	from := time.Now()
	done := make(chan error, len(all))
	for _, m := range all {
		go func() { done <- m.handOver(ctx) }()
	}
	for range all {
		err = errors.Join(err, <-done)
	}
	if err != nil {
		return 0, err
	}
	until := time.Now().Add(time.Second)
	time.Sleep(time.Until(until))
	return h.longest(from, until)
}
