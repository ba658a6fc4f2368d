package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"gantline/internal/control"
	"gantline/internal/demo"
)

func (a *app) demoCmd() *cobra.Command {
	var opts demo.Options
	var size sizeFlag
	var seconds float64
	var verbose, asJSON bool
	later := map[string]string{"mode": "async", "log": "journal", "transfer": "push", "retain": "applied", "strategy": "switch-first",
		"backlog": "drain", "in-flight": "finish", "topology": "gateway", "kill": "", "listen": ""}
	c := a.verb("demo", "Build two sites in this process and move a primary under load", cobra.NoArgs,
		func(ctx context.Context, _ []string) error {
			return a.runDemo(ctx, opts, size, seconds, verbose, asJSON)
		})
	f := c.Flags()
	f.IntVar(&opts.Volumes, "volumes", 3, "volumes of the group")
	f.Var(&size, "size", "size of each volume (default 64MiB)")
	f.Float64Var(&seconds, "seconds", 3, "how long the load runs before the move, and again after it")
	f.IntVar(&opts.Depth, "qd", 8, "requests in flight")
	f.IntVar(&opts.Rate, "rate", 4000, "writes a second; -1: as fast as it goes")
	f.Uint64Var(&opts.Seed, "seed", 0, "seed of the load (0: any)")
	f.StringVar(&opts.Dir, "dir", "", "keep the files in this directory")
	f.BoolVar(&verbose, "verbose", false, "show the parts' own logs on standard error")
	f.BoolVar(&asJSON, "json", false, "print only the report, as JSON")
	mirror := f.Bool("mirror", false, "not built yet")
	for name, only := range later {
		text := "not built yet"
		if only != "" {
			text = "only " + only + " so far"
		}
		f.String(name, only, text)
	}
	c.PreRunE = func(cmd *cobra.Command, _ []string) error {
		for name, only := range later {
			if got := cmd.Flag(name).Value.String(); got != only {
				return control.NotBuilt(fmt.Sprintf("demo --%s %s", name, got))
			}
		}
		if *mirror {
			return control.NotBuilt("demo --mirror")
		}
		return nil
	}
	return c
}

func (a *app) runDemo(ctx context.Context, opts demo.Options, size sizeFlag, seconds float64, verbose, asJSON bool) error {
	if opts.Volumes < 1 || opts.Volumes > 64 || opts.Depth < 1 || opts.Depth > 256 || seconds <= 0 || size.bytes%4096 != 0 {
		return control.Errorf(control.KindUsage, "demo: 1 to 64 volumes of a multiple of 4096 bytes, 1 to 256 requests in flight, seconds above 0")
	}
	opts.Size, opts.Load = size.bytes, time.Duration(seconds*float64(time.Second))
	if verbose {
		opts.Log = slog.New(slog.NewTextHandler(a.stderr, nil))
	}
	out := a.stdout
	if asJSON {
		out = io.Discard
	}
	report, err := demo.Run(ctx, opts, out)
	if err != nil {
		return control.Errorf(control.KindFailed, "demo: %v", err)
	}
	if asJSON {
		if err := json.NewEncoder(a.stdout).Encode(report); err != nil {
			return err
		}
	}
	if !report.OK {
		return control.Errorf(control.KindFailed, "demo: %d checks did not hold: %v (seed %d)", len(report.Failed), report.Failed, report.Seed)
	}
	return nil
}
