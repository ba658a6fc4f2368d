package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"gantline/internal/control"
)

// stopLimit is how long a role may take to stop before the process ends without it; INTERFACE promises 10 s.
const stopLimit = 9500 * time.Millisecond

// role is one long-lived process.
type role struct {
	settings *settings
	dir      string
	log      *slog.Logger
	stderr   io.Writer
	point    func(step, edge string)
}

func (a *app) serveCmd() *cobra.Command {
	return noun("serve", "Run one of the processes",
		a.serveRole("manager", "Run the manager: control state, operations, HTTP interface", serveManager),
		a.serveRole("node", "Run a storage node", serveNode),
		a.serveRole("gateway", "Run a gateway, where hosts open virtual volumes", serveGateway),
		a.later("agent", "serve agent"))
}

func (a *app) serveRole(name, short string, run func(context.Context, *role) error) *cobra.Command {
	c := &cobra.Command{Use: name, Short: short, Args: cobra.NoArgs}
	addSettings(c, name)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		a.ran = true
		s, err := a.readSettings(name, cmd.Flags())
		if err != nil {
			return err
		}
		return a.serve(cmd.Context(), s, run)
	}
	return c
}

// serve is what all roles have in common: configuration checked, data directory locked, then the role until SIGTERM.
func (a *app) serve(ctx context.Context, s *settings, run func(context.Context, *role) error) error {
	if err := s.check(); err != nil {
		return err
	}
	level, err := s.level()
	if err != nil {
		return err
	}
	r := &role{settings: s, dir: s.dataDir(), stderr: a.stderr,
		log: slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: level}))}
	if r.dir, err = filepath.Abs(r.dir); err != nil {
		return err
	}
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	unlock, err := lockDir(r.dir)
	if err != nil {
		return err
	}
	defer unlock()
	if r.point, err = killPoint(a.env, r.dir, a.stderr); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() {
		_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping) // no systemd, no harm
		time.AfterFunc(stopLimit, func() {
			fmt.Fprintf(a.stderr, "gantline: %s did not stop within %v\n", s.role, stopLimit)
			os.Exit(1)
		})
	})()
	err = run(ctx, r)
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		return nil
	}
	return err
}

// lockDir keeps a second process out of a data directory. The lock ends with the process.
func lockDir(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, control.Errorf(control.KindRefused, "data directory %s is in use by another process; stop it first, or give "+
				"another --data-dir", dir)
		}
		return nil, fmt.Errorf("data directory %s: lock: %w", dir, err)
	}
	return func() { _ = f.Close() }, nil
}

// ready tells the world that the role serves. The line is not in the log's form, so that scripts can read it.
func (r *role) ready(name string, addresses ...string) {
	line := "ready " + r.settings.role + " " + name
	for i := 0; i+1 < len(addresses); i += 2 {
		if addresses[i+1] != "" {
			line += " " + addresses[i] + "=" + addresses[i+1]
		}
	}
	fmt.Fprintln(r.stderr, line)
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
}

// managers are the URLs that a node or gateway registers with.
func (r *role) managers() []string { return strings.Split(r.settings.get("manager"), ",") }
