package cli

import (
	"context"
	"encoding/json"
	"io"
	"time"

	"github.com/spf13/cobra"

	"gantline/internal/control"
	"gantline/internal/demo"
)

// demoDefaults are the flags whose other values come later; the default is what the demo does.
var demoDefaults = []struct{ flag, def string }{
	{"mode", "async"}, {"log", "journal"}, {"backlog", "drain"},
	{"in-flight", "finish"}, {"topology", "gateway"}, {"kill", ""}, {"listen", ""},
}

func (a *app) demoCmd() *cobra.Command {
	var opts demo.Options
	var size sizeFlag
	var seconds float64
	var asJSON, mirror bool
	c := &cobra.Command{Use: "demo", Short: "A whole two-site system in one process, with a move under a load that proves itself", Args: cobra.NoArgs}
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		a.ran = true
		for _, d := range demoDefaults {
			if f := cmd.Flags().Lookup(d.flag); f.Changed && f.Value.String() != d.def {
				return control.NotBuilt("demo --" + d.flag + " " + f.Value.String())
			}
		}
		if mirror {
			return control.NotBuilt("demo --mirror")
		}
		if seconds < 0 || opts.Volumes < 0 || opts.Volumes > 64 || opts.Depth < 0 || opts.Depth > 1024 {
			return control.Errorf(control.KindUsage, "demo: --seconds, --volumes (to 64) and --qd (to 1024) are not negative")
		}
		opts.Size, opts.Load = size.bytes, time.Duration(seconds*float64(time.Second))
		ctx, cancel := a.limited(cmd.Context())
		defer cancel()
		return a.demo(ctx, opts, asJSON || a.output == "json")
	}
	f := c.Flags()
	f.IntVar(&opts.Volumes, "volumes", 0, "volumes of the group")
	f.Var(&size, "size", "size of each volume")
	f.Float64Var(&seconds, "seconds", 0, "how long the load runs before the move, and after it")
	f.IntVar(&opts.Depth, "qd", 0, "requests in flight")
	f.StringVar(&opts.Dir, "dir", "", "keep the files here")
	f.StringVar(&opts.Transfer, "transfer", "", "push (default) or pull")
	f.StringVar(&opts.Retain, "retain", "", "applied (default) or transferred")
	f.StringVar(&opts.Strategy, "strategy", "", "switch-first (default) or copy-first: see `migrate start --help`")
	f.BoolVar(&asJSON, "json", false, "print only the report")
	f.BoolVar(&mirror, "mirror", false, "not built yet")
	for _, d := range demoDefaults {
		f.String(d.flag, d.def, "other values are not built yet")
	}
	return c
}

func (a *app) demo(ctx context.Context, opts demo.Options, asJSON bool) error {
	out := a.stdout
	if asJSON {
		out = io.Discard
	}
	report, err := demo.Run(ctx, opts, out)
	if err != nil {
		return err
	}
	if asJSON {
		raw, err := json.Marshal(report)
		if err != nil {
			return err
		}
		if err := printJSON(a.stdout, raw); err != nil {
			return err
		}
	}
	if !report.OK {
		return control.Errorf(control.KindFailed, "demo: a check did not hold; the report says which")
	}
	return nil
}
