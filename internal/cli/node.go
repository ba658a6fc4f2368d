package cli

import (
	"context"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"
)

func (a *app) nodeCmd() *cobra.Command {
	var forget bool
	remove := a.verb("remove N", "Remove a node that is down", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		_, _, err := a.change(ctx, http.MethodDelete, path(nodeTable.kind, args[0])+fmt.Sprintf("?forget=%t", forget), nil)
		return err
	})
	remove.Flags().BoolVar(&forget, "forget", false, "forget its volumes, journals and data directory too")
	return noun("node", "Storage nodes", a.listCmd(nodeTable), a.showCmd(nodeTable, "N"), remove,
		a.later("add-cluster", "node add-cluster"), a.later("remove-cluster", "node remove-cluster"), a.later("drain", "node drain"))
}

func (a *app) gatewayCmd() *cobra.Command {
	return noun("gateway", "Gateways", a.listCmd(gatewayTable), a.showCmd(gatewayTable, "N"),
		a.deleteCmd(gatewayTable, "remove N", false))
}
