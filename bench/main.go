// Command bench measures Gantline beside its peers in one run: nbdkit's file plugin and qemu-nbd for a host's reads,
// writes and flushes, qemu-storage-daemon's blockdev-mirror for the move of a volume.
//
// Everything runs as separate processes on this machine, reached by unix sockets, with all files below one directory,
// so on one disk. The sides of a case take turns (A B A B A B) and their medians are compared. Both sides' files are
// made by the same writer of small blocks and are in the page cache alike: Linux caches what large writes brought in
// as large folios, and a later 4 KiB write to one costs several times as much, so files filled differently cannot be
// compared. See docs/architecture.md for what is compared with what, and why.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"
)

type options struct {
	gantline  string
	dir       string
	run       *regexp.Regexp
	runs      int
	size      int64         // bytes of the volumes that fio works on
	moveSize  int64         // bytes of the volumes that are moved
	moveCount int           // moves of the case of many
	fill      int64         // length of the writes that filled the files before
	time      time.Duration // of one fio run
	memoryCap int64         // bytes that a node may use under full load
	peersOnly bool
	keep      bool
	profiles  string // directory for CPU profiles of our processes; "": none
}

func main() {
	os.Exit(mainCode())
}

func mainCode() int {
	o, list, err := parse(os.Args[1:])
	if err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
		return 2
	}
	if list {
		for _, c := range cases() {
			fmt.Printf("%-20s %s\n", c.name, c.about)
		}
		return 0
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ok, err := measure(ctx, o)
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	case !ok:
		fmt.Fprintln(os.Stderr, "bench: a goal was missed")
		return 1
	}
	return 0
}

func parse(args []string) (o options, list bool, err error) {
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.StringVar(&o.gantline, "gantline", "bin/gantline", "the binary to measure")
	f.StringVar(&o.dir, "dir", "", "where a directory for all files is made, removed at the end (default: TMPDIR)")
	pattern := f.String("run", "", "only cases whose name matches this expression")
	f.IntVar(&o.runs, "runs", 3, "turns of each side; medians are compared")
	size := f.String("size", "1GiB", "size of the volumes read and written")
	moveSize := f.String("move-size", "2GiB", "size of the volumes moved")
	f.IntVar(&o.moveCount, "moves", 20, "how often move-pause-20 moves its group")
	fill := f.String("fill", "1MiB", "length of the writes that fill all sides' files before; it decides what a small write costs later")
	f.DurationVar(&o.time, "time", 3*time.Second, "length of one measurement")
	memoryCap := f.String("memory-cap", "768MiB", "what a node started with --memory 512MiB may use of memory under full load")
	f.BoolVar(&o.peersOnly, "peers", false, "measure the peers alone: what this machine gives, no goals")
	f.BoolVar(&o.keep, "keep", false, "keep the files")
	f.StringVar(&o.profiles, "profile", "", "an existing directory for CPU profiles of gateway and nodes, one for each measurement")
	f.BoolVar(&list, "list", false, "list the cases")
	if err := f.Parse(args); err != nil {
		return o, false, err
	}
	if f.NArg() > 0 {
		return o, false, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if o.run, err = regexp.Compile(*pattern); err != nil {
		return o, false, fmt.Errorf("-run: %w", err)
	}
	for _, s := range []struct {
		name, text string
		to         *int64
	}{{"-size", *size, &o.size}, {"-move-size", *moveSize, &o.moveSize}, {"-fill", *fill, &o.fill}, {"-memory-cap", *memoryCap, &o.memoryCap}} {
		if *s.to, err = parseSize(s.text); err != nil {
			return o, false, fmt.Errorf("%s: %w", s.name, err)
		}
	}
	if o.fill > 64<<20 {
		return o, false, errors.New("-fill must be at most 64MiB")
	}
	if o.runs < 1 || o.runs > 100 || o.moveCount < 1 || o.moveCount > 1000 || o.time < time.Second {
		return o, false, errors.New("-runs must be 1 to 100, -moves 1 to 1000, -time at least 1s")
	}
	return o, list, nil
}

// measure runs the cases asked for and prints the table; false: a goal was missed.
func measure(ctx context.Context, o options) (ok bool, err error) {
	if err := checkTools(o); err != nil {
		return false, err
	}
	if o.dir, err = os.MkdirTemp(o.dir, "bench-"); err != nil {
		return false, err
	}
	// Children run with this directory's absolute path; unix socket paths are limited to about 100 bytes.
	if o.dir, err = filepath.Abs(o.dir); err != nil {
		return false, err
	}
	if len(o.dir) > 60 {
		return false, fmt.Errorf("%s is too long for the unix sockets below it: choose a shorter -dir", o.dir)
	}
	b := &bench{options: o, table: newTable(os.Stdout), peers: map[side]endpoint{}, extra: map[string]bool{}}
	defer func() {
		err = errors.Join(err, b.close())
		if o.keep {
			fmt.Fprintln(os.Stderr, "bench: files are in", o.dir)
		} else {
			err = errors.Join(err, os.RemoveAll(o.dir))
		}
	}()
	ran := 0
	for _, c := range cases() {
		if !o.run.MatchString(c.name) || (o.peersOnly && !c.peers) {
			continue
		}
		ran++
		fmt.Fprintf(os.Stderr, "%s: %s\n", c.name, c.about)
		if err := c.run(ctx, b); err != nil {
			if ctx.Err() != nil {
				return false, context.Cause(ctx)
			}
			b.table.fail(c.name, err)
		}
	}
	if ran == 0 {
		return false, errors.New("no case matches -run")
	}
	fmt.Printf("volumes of %d MiB filled by writes of %d KiB, moved ones of %d MiB; medians of %d turns of %v\n",
		o.size>>20, o.fill>>10, o.moveSize>>20, o.runs, o.time)
	return b.table.print(), nil
}

func checkTools(o options) error {
	for _, tool := range []string{"fio", "nbdkit", "qemu-nbd", "qemu-storage-daemon"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is not installed; `make tools` installs it", tool)
		}
	}
	if o.peersOnly {
		return nil
	}
	if _, err := os.Stat(o.gantline); err != nil {
		return fmt.Errorf("%w; `make build` builds it", err)
	}
	return nil
}
