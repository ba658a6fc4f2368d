package cli

import (
	"context"

	"github.com/spf13/cobra"

	"gantline/internal/control"
)

func (a *app) linkCmd() *cobra.Command {
	var limit sizeFlag
	var connections int
	set := a.verb("set A:B [--limit R] [--connections N]", "Change how node A sends to node B", cobra.ExactArgs(1), nil)
	f := set.Flags()
	f.Var(&limit, "limit", "bytes a second of all copy streams from A to B together; 0: none")
	f.IntVar(&connections, "connections", 1, "TCP connections of each copy stream, 1 to 16")
	set.RunE = func(cmd *cobra.Command, args []string) error {
		a.ran = true
		var in control.LinkRequest
		if f.Changed("limit") {
			in.Limit = &limit.bytes
		}
		if f.Changed("connections") {
			in.Connections = &connections
		}
		return a.setLink(cmd.Context(), args[0], in)
	}
	return noun("link", "Links between nodes, over which groups copy", a.listCmd(linkTable), a.showCmd(linkTable, "A:B"), set)
}

func (a *app) setLink(ctx context.Context, name string, in control.LinkRequest) error {
	if _, _, err := control.SplitLink(name); err != nil {
		return err
	}
	return a.make(ctx, linkTable, path(linkTable.kind, name), in)
}
