package cli

import (
	"context"

	"github.com/spf13/cobra"

	"gantline/internal/control"
)

var promoteTable = table{kind: groupTable.kind, single: "promotion", name: "group", basic: []column{
	{"GROUP", "group", nil}, {"EPOCH", "epoch", nil}, {"CUT", "cut", nil}, {"LOST", "lost_writes", nil}}}

func (a *app) groupPromote() *cobra.Command {
	var in control.PromoteRequest
	c := a.verb("promote G --force", "Make the secondary the primary after a disaster; also with --socket", cobra.ExactArgs(1),
		func(ctx context.Context, args []string) error {
			return a.make(ctx, promoteTable, path(groupTable.kind, args[0], "promote"), in)
		})
	c.Long = "Makes a group's secondary its primary. What the old primary wrote and had not sent is lost, and the old primary is\n" +
		"superseded: it refuses hosts once it hears of it. --dry-run says what would be lost, as far as it is known.\n\n" +
		"With --socket DATA-DIR/control.sock it needs nothing but the secondary's own node."
	c.Flags().BoolVar(&in.Force, "force", false, "without the old primary: what it has not sent is lost")
	return c
}
