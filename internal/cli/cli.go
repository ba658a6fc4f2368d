package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"gantline/internal/control"
	"gantline/internal/manager/client"
)

const defaultManager = "http://127.0.0.1:10820"

// app is one run of the command.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	env            func(string) (string, bool)
	environ        func() []string

	manager string
	output  string
	noWait  bool
	timeout time.Duration
	dryRun  bool
	yes     bool
	socket  string

	// ran says that a verb's own code has begun: an error before that is one of usage.
	ran    bool
	client *client.Client
}

// Main runs the command line and returns the exit code.
func Main(args []string) int {
	// Ctrl-C ends the waiting, not what is waited for; serve stops in order.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, env: os.LookupEnv, environ: os.Environ}
	return a.run(ctx, args)
}

func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	err := root.ExecuteContext(ctx)
	if a.client != nil {
		a.client.Close()
	}
	if err == nil {
		return 0
	}
	if !a.ran && control.KindOf(err) == control.KindFailed {
		err = control.Errorf(control.KindUsage, "%v; `gantline --help` shows what there is", err)
	}
	if errors.Is(err, context.Canceled) {
		err = control.Errorf(control.KindTimeout, "interrupted; what was begun goes on")
	}
	fmt.Fprintf(a.stderr, "gantline: %v\n", err)
	return exitCode(err)
}

// exitCode is the one place where an error becomes a number.
func exitCode(err error) int {
	switch control.KindOf(err) {
	case control.KindOK:
		return 0
	case control.KindUsage:
		return 2
	case control.KindNotFound:
		return 3
	case control.KindRefused:
		return 4
	case control.KindUnreachable, control.KindTimeout:
		return 5
	case control.KindDifferent:
		return 6
	}
	return 1
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "gantline",
		Short: "Remote copies of block volumes, and moves of their primaries under load",
		Long: "Gantline copies block volumes to a remote site in the order the host wrote them, and lets the storage under the\n" +
			"primary be replaced while hosts keep writing and the remote copy keeps flowing.\n\n" +
			"Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 refused, 5 unreachable or timed out, 6 differences found.",
		SilenceErrors: true, SilenceUsage: true,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.CompletionOptions.DisableDefaultCmd = true
	f := root.PersistentFlags()
	f.StringVar(&a.manager, "manager", "", "manager's URL, several by comma (GANTLINE_MANAGER; default "+defaultManager+")")
	f.StringVarP(&a.output, "output", "o", "table", "table, wide, json, yaml or name")
	f.BoolVar(&a.noWait, "no-wait", false, "return at once, with the id")
	f.DurationVar(&a.timeout, "timeout", 0, "give up waiting after this (exit 5; what was begun goes on)")
	f.BoolVar(&a.dryRun, "dry-run", false, "print what would be done (exit 4 if it would be refused)")
	f.BoolVar(&a.yes, "yes", false, "do not ask before data is destroyed")
	f.StringVar(&a.socket, "socket", "", "a node's own DATA-DIR/control.sock, for group show, group promote and migrate show with no manager")
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		switch a.output {
		case "table", "wide", "json", "yaml", "name":
		default:
			return control.Errorf(control.KindUsage, "--output %q: it is table, wide, json, yaml or name", a.output)
		}
		switch path := cmd.CommandPath(); path {
		case "gantline group show", "gantline migrate show", "gantline group promote":
		default:
			if a.socket != "" {
				return control.Errorf(control.KindUsage, "--socket goes with `group show`, `group promote` and `migrate show`; all else is "+
					"the manager's")
			}
		}
		return nil
	}
	root.AddCommand(a.serveCmd(), a.nodeCmd(), a.gatewayCmd(), a.volumeCmd(), a.journalCmd(), a.vvolCmd(), a.groupCmd(),
		a.pairCmd(), a.linkCmd(), a.migrateCmd(), a.statusCmd(), a.eventsCmd(), a.waitCmd(), a.versionCmd(), a.completionCmd(), a.demoCmd())
	root.AddCommand(a.laterCmds()...)
	return root
}

// verb makes a command whose errors are its own.
func (a *app) verb(use, short string, args cobra.PositionalArgs, f func(ctx context.Context, args []string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: args, RunE: func(cmd *cobra.Command, args []string) error {
		a.ran = true
		return f(cmd.Context(), args)
	}}
}

// noun makes a command that only holds verbs.
func noun(use, short string, verbs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return control.Errorf(control.KindUsage, "gantline %s wants a verb; `gantline %s --help` lists them", cmd.Name(), cmd.Name())
	}}
	c.AddCommand(verbs...)
	return c
}

// api is the client of the manager named by flag, variable or default.
func (a *app) api() (*client.Client, error) {
	if a.client != nil {
		return a.client, nil
	}
	if a.socket != "" {
		a.client = client.NewSocket(a.socket)
		return a.client, nil
	}
	url := a.manager
	if url == "" {
		url, _ = a.env("GANTLINE_MANAGER")
	}
	if url == "" {
		url = defaultManager
	}
	var err error
	a.client, err = client.New(strings.Split(url, ",")...)
	return a.client, err
}

// limited gives a context with --timeout.
func (a *app) limited(ctx context.Context) (context.Context, context.CancelFunc) {
	if a.timeout > 0 {
		return context.WithTimeout(ctx, a.timeout)
	}
	return context.WithCancel(ctx)
}

// confirm asks for the name of what would lose its data.
func (a *app) confirm(what, name string) error {
	if a.yes || a.dryRun {
		return nil
	}
	fmt.Fprintf(a.stderr, "This destroys the data of %s %s. Type its name to go on: ", what, name)
	var typed string
	if _, err := fmt.Fscanln(a.stdin, &typed); err != nil || typed != name {
		return control.Errorf(control.KindRefused, "%s %s was not destroyed: its name was not given again; --yes does without", what, name)
	}
	return nil
}
