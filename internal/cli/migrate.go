package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gantline/internal/control"
)

func (a *app) migrateCmd() *cobra.Command {
	abort := a.verb("abort ID", "Turn back a move that has not been decided", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		raw, done, err := a.change(ctx, http.MethodPost, path(migrationTable.kind, args[0], "abort"), struct{}{})
		if err != nil || done {
			return err
		}
		return a.untilMoved(ctx, raw, control.PhaseAborted)
	})
	cont := a.verb("continue ID", "Let a move go on that was to stop, and wait until it is filled", cobra.ExactArgs(1),
		func(ctx context.Context, args []string) error {
			raw, done, err := a.change(ctx, http.MethodPost, path(migrationTable.kind, args[0], "continue"), struct{}{})
			if err != nil || done {
				return err
			}
			return a.untilMoved(ctx, raw, control.PhaseFilled)
		})
	return noun("migrate", "Moves of a group's primary, or of a volume in no group, to another node", a.migrateStart(), a.listCmd(migrationTable),
		a.showCmd(migrationTable, "ID"), a.migrateSet(), cont, abort, a.migrateCommit())
}

func (a *app) migrateSet() *cobra.Command {
	var limit sizeFlag
	c := a.verb("set ID --limit R", "Change the limit of a move's background copy", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		return a.make(ctx, migrationTable, path(migrationTable.kind, args[0], "set"), control.MoveSetRequest{Limit: &limit.bytes})
	})
	c.Flags().Var(&limit, "limit", "background copy at most this much a second; 0: no limit")
	must(c.MarkFlagRequired("limit"))
	return c
}

func (a *app) migrateStart() *cobra.Command {
	var in control.MoveRequest
	var maps []string
	var limit sizeFlag
	c := a.verb("start G --to NODE", "Move a group's primary, or a volume in no group, and wait until it is filled", cobra.ExactArgs(1),
		func(ctx context.Context, args []string) error {
			in.Group, in.Limit, in.Map = args[0], limit.bytes, map[string]string{}
			for _, m := range maps {
				from, to, ok := strings.Cut(m, "=")
				if !ok || in.Map[from] != "" {
					return control.Errorf(control.KindUsage, "--map %q: write it as NODE/VOLUME=NODE/VOLUME, once for each volume", m)
				}
				in.Map[from] = to
			}
			for _, to := range in.Map {
				if err := a.confirm("volume", to); err != nil {
					return err
				}
			}
			raw, done, err := a.change(ctx, http.MethodPost, path(migrationTable.kind, ""), in)
			if err != nil || done {
				return err
			}
			phase := control.PhaseFilled
			switch {
			case in.StopAt != "":
				phase = in.StopAt
			case in.Commit:
				phase = control.PhaseCommitted
			}
			return a.untilMoved(ctx, raw, phase)
		})
	c.Long = "Move a group's primary to another node, while hosts go on writing and the remote copy goes on flowing.\n" +
		"G may be NODE/VOLUME, a volume in no group: it needs no journal, and is in no group at the target either.\n\n" +
		"--strategy says what comes first, leading hosts to the target or filling it:\n" +
		"  switch-first  relieves the source at once: hosts' new writes stay at the target within seconds. Until the move is\n" +
		"                filled, what was not copied yet is at the source alone: it must live, or that data is lost.\n" +
		"                Choose it when the source has to be relieved, or the target has to take over now.\n" +
		"  copy-first    copies all to the target, which follows what hosts write; only then hosts are led there. It takes\n" +
		"                the space and the time before the switch, and the source does its work and feeds two until then.\n" +
		"                The source may die right after the switch: nothing is absent at the target. Choose it when\n" +
		"                the source cannot be trusted to live, or hosts are not to wait for regions that are fetched.\n\n" +
		"--backlog says what becomes of the writes that the secondary has not got when the target takes over:\n" +
		"  drain  the source sends them. Until it has, it must live and reach the secondary.\n" +
		"  carry  they move to the target, which sends them: with the link to the secondary down, and with gigabytes of them.\n" +
		"         The target must have room for them besides all else. The source is not needed for them any more when\n" +
		"         migrate show says that bytes.carried is bytes.carry_total. For asynchronous groups with a journal.\n\n" +
		inFlightHelp
	f := c.Flags()
	f.StringVar(&in.To, "to", "", "the target node")
	f.StringArrayVar(&maps, "map", nil, "V1=V2: move V1 onto the existing V2, which is overwritten; may be repeated")
	f.StringVar(&in.Journal, "journal", "", "existing journal of the target node")
	f.StringVar(&in.Strategy, "strategy", "", "switch-first (default) or copy-first: when hosts are led to the target, see above")
	f.StringVar(&in.Backlog, "backlog", "", "drain (default) or carry: who sends what the secondary has not got at the cut, see above")
	f.StringVar(&in.InFlight, "in-flight", "", "finish (default), hold or error: what becomes of requests under way, see above")
	f.StringVar(&in.Paths, "paths", "", "all (default): all gateways are led to the target at once; one-by-one: each when the one before has confirmed")
	f.BoolVar(&in.Mirror, "mirror", false, "keep the source up to date, as a way back")
	f.Var(&limit, "limit", "background copy at most this much a second")
	f.StringVar(&in.StopAt, "stop-at", "", "registered or switched: wait there for migrate continue")
	f.BoolVar(&in.Commit, "commit", false, "remove the source at once when it is filled")
	must(c.MarkFlagRequired("to"))
	return c
}

// untilMoved waits until a move has a phase, shows its progress, and ends with what it cost.
func (a *app) untilMoved(ctx context.Context, raw json.RawMessage, phase string) error {
	var first control.MigrationView
	if err := json.Unmarshal(raw, &first); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	if a.noWait {
		return a.result(migrationTable, raw)
	}
	var last control.MigrationView
	r := rate{}
	raw, err := a.await(ctx, path(migrationTable.kind, first.ID), func(raw json.RawMessage) (bool, string, error) {
		last = control.MigrationView{}
		if err := json.Unmarshal(raw, &last); err != nil {
			return false, "", fmt.Errorf("answer: %w", err)
		}
		switch last.Phase {
		case phase, control.PhaseCommitted:
			return true, "", nil
		case control.PhaseFailed:
			return false, "", control.Errorf(control.KindFailed, "migration %s has failed: %s", last.ID, last.Error)
		case control.PhaseAborted:
			return false, "", control.Errorf(control.KindFailed, "migration %s was aborted: %s", last.ID, last.Error)
		}
		if phase == control.PhaseCommitted && last.Check.Failed() {
			return true, "", nil
		}
		if phase != control.PhaseAborted && control.After(last.Phase, phase) {
			return true, "", nil
		}
		return false, moveProgress(&last, &r), nil
	})
	if err != nil {
		return err
	}
	if phase == control.PhaseAborted && last.BlockedOn != nil && *last.BlockedOn != "" {
		fmt.Fprintf(a.stderr, "migration %s is aborted; what is left is done when it can be: %s\n", last.ID, *last.BlockedOn)
	}
	if control.After(last.Phase, control.PhaseFilled) {
		a.summary(&last)
	}
	if err := a.result(migrationTable, raw); err != nil || phase != control.PhaseCommitted {
		return err
	}
	return a.checked(&last)
}

// rate remembers the latest sample, for bytes a second and the time left.
type rate struct {
	at    time.Time
	bytes int64
	perS  float64
}

func (r *rate) sample(bytes int64, now time.Time) {
	if r.at.IsZero() || now.Sub(r.at) >= time.Second {
		if !r.at.IsZero() {
			r.perS = float64(bytes-r.bytes) / now.Sub(r.at).Seconds()
		}
		r.at, r.bytes = now, bytes
	}
}

func moveProgress(v *control.MigrationView, r *rate) string {
	phase := v.Phase
	if phase == "" {
		phase = "registering"
	}
	line := fmt.Sprintf("migration %s: %s", v.ID, phase)
	if v.Regions.Total != nil && v.Regions.Present != nil && *v.Regions.Total > 0 &&
		(v.Phase == control.PhaseCopying || control.After(v.Phase, control.PhaseMigrating)) {
		line = progress(line, *v.Regions.Present, *v.Regions.Total)
		if v.Bytes.Background != nil && v.Bytes.OnDemand != nil {
			moved := *v.Bytes.Background + *v.Bytes.OnDemand
			r.sample(moved, time.Now())
			if r.perS > 0 && *v.Regions.Present > 0 {
				perRegion := float64(moved) / float64(*v.Regions.Present)
				left := perRegion * float64(*v.Regions.Total-*v.Regions.Present) / r.perS
				line += fmt.Sprintf(", %s/s, %.0f s left", humanBytes(float64(int64(r.perS))), left)
			}
		}
	}
	if v.Check != nil && v.Check.State == control.CheckRunning {
		line = progress(fmt.Sprintf("migration %s: comparing %s with %s", v.ID, v.Source, v.Target), v.Check.DoneBytes, v.Check.TotalBytes)
	}
	if v.PauseMS != nil {
		line += fmt.Sprintf(", pause %.1f ms", *v.PauseMS)
	}
	if v.BlockedOn != nil && *v.BlockedOn != "" {
		line += ", waits for " + *v.BlockedOn
	}
	return line
}

// summary tells what a move has cost, on standard error.
func (a *app) summary(v *control.MigrationView) {
	n := func(p *int64) string {
		if p == nil {
			return "unknown"
		}
		return humanBytes(float64(*p))
	}
	pause := "unknown"
	if v.PauseMS != nil {
		pause = fmt.Sprintf("%.1f ms", *v.PauseMS)
	}
	fmt.Fprintf(a.stderr, "migration %s: %s; pause %s; copied %s in the background, %s on demand, %s twice; %s over the WAN\n",
		v.ID, v.Phase, pause, n(v.Bytes.Background), n(v.Bytes.OnDemand), n(v.Bytes.Twice), n(v.WANBytesSent))
}
