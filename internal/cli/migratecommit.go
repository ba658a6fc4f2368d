package cli

import (
	"context"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"gantline/internal/control"
)

func (a *app) migrateCommit() *cobra.Command {
	var in control.MoveCommitRequest
	what := "Compare source and target of a filled move, and remove the source (exit 6 if they differ)"
	c := a.verb("commit ID", what, cobra.ExactArgs(1),
		func(ctx context.Context, args []string) error {
			raw, done, err := a.change(ctx, http.MethodPost, path(migrationTable.kind, args[0], "commit"), in)
			if err != nil || done {
				return err
			}
			return a.untilMoved(ctx, raw, control.PhaseCommitted)
		})
	c.Long = "Compare source and target of a filled move as of its cut, and remove the source.\n\n" +
		"Everything is compared that hosts have not written to since the move's cut, in blocks of 64 KiB; holes cost nothing. Hosts go\n" +
		"on meanwhile, and `migrate set --limit` holds the reading back. What differs is listed with exit code 6: the move stays filled,\n" +
		"and the source is kept. Then there are two ways:\n" +
		"  - If the target is right: `migrate commit ID --accept-differences`.\n" +
		"  - If the source is right: write the listed places anew from the source's volume, as a host of the target. What a host has\n" +
		"    written is not compared any more: commit again.\n\n" +
		"A source that does not answer is waited for. One that was forgotten (`node remove --forget`) is not: nothing is compared\n" +
		"then, and that is said."
	c.Flags().BoolVar(&in.AcceptDifferences, "accept-differences", false, "remove the source though the target differs from it")
	return c
}

// listedPlaces is how many places that differ are told on standard error.
const listedPlaces = 16

// checked tells what the comparison of a commit has found.
func (a *app) checked(v *control.MigrationView) error {
	c := v.Check
	switch {
	case c.Failed():
		return control.Errorf(control.KindDifferent, "%s", control.Differs(v.ID, v.Source, v.Target, c, listedPlaces))
	case c == nil:
	case c.State == control.CheckSkipped:
		fmt.Fprintf(a.stderr, "migration %s: %s and %s were not compared: %s\n", v.ID, v.Source, v.Target, c.Reason)
	case c.State == control.CheckDifferent:
		fmt.Fprintln(a.stderr, control.Differs(v.ID, v.Source, v.Target, c, listedPlaces))
	case c.State == control.CheckSame:
		fmt.Fprintf(a.stderr, "migration %s: %s and %s agree at the cut, but for %s that hosts have written to since\n", v.ID,
			v.Source, v.Target, humanBytes(float64(c.WrittenBytes)))
	}
	return nil
}
