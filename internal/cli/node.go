package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"gantline/internal/control"
)

func (a *app) nodeCmd() *cobra.Command {
	var forget, loss bool
	remove := a.verb("remove N", "Remove a node that is down", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		if loss && !forget {
			return control.Errorf(control.KindUsage, "--accept-loss goes with --forget")
		}
		if forget {
			if err := a.confirm("node", args[0]); err != nil {
				return err
			}
		}
		_, _, err := a.change(ctx, http.MethodDelete, path(nodeTable.kind, args[0])+fmt.Sprintf("?forget=%t&accept_loss=%t", forget, loss), nil)
		return err
	})
	remove.Flags().BoolVar(&forget, "forget", false, "it is gone for good: forget its volumes, journals, part in groups and data directory too")
	remove.Flags().BoolVar(&loss, "accept-loss", false, "with --forget: lose what only it has of a decided move of volumes that are not copied (`at_risk` in "+
		"migrate show; a source's reads as zeros, of a target what was written since the decision)")
	return noun("node", "Storage nodes", a.listCmd(nodeTable), a.showCmd(nodeTable, "N"), remove,
		a.later("add-cluster", "node add-cluster"), a.later("remove-cluster", "node remove-cluster"), a.nodeDrain())
}

func (a *app) nodeDrain() *cobra.Command {
	var in control.DrainRequest
	c := a.verb("drain N --to M", "Move every group and lone volume off a node, and wait until all are filled", cobra.ExactArgs(1),
		func(ctx context.Context, args []string) error {
			raw, done, err := a.change(ctx, http.MethodPost, path(nodeTable.kind, args[0], "drain"), in)
			if err != nil || done {
				return err
			}
			return a.untilDrained(ctx, raw)
		})
	f := c.Flags()
	f.StringVar(&in.To, "to", "", "the node to move to")
	f.IntVar(&in.Parallel, "parallel", 0, "moves at a time, 1 to 16 (default 2); named again, it changes a drain under way")
	f.BoolVar(&in.Commit, "commit", false, "remove each source at once when its move is filled")
	must(c.MarkFlagRequired("to"))
	return c
}

// untilDrained waits for a drain. One that has stopped ends with the reason, and what it has done.
func (a *app) untilDrained(ctx context.Context, raw json.RawMessage) error {
	var first, last control.OperationView
	if err := json.Unmarshal(raw, &first); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	if a.noWait {
		return a.result(operationTable, raw)
	}
	raw, err := a.await(ctx, path(control.KindOperation, first.ID), func(raw json.RawMessage) (bool, string, error) {
		last = control.OperationView{}
		if err := json.Unmarshal(raw, &last); err != nil {
			return false, "", fmt.Errorf("answer: %w", err)
		}
		return last.Phase != control.DrainMoving, drainProgress(&last), nil
	})
	if err != nil {
		return err
	}
	for _, it := range last.Items {
		fmt.Fprintf(a.stderr, "%s: %s %s\n", it.Object, it.Phase, it.Migration)
	}
	if last.Phase == control.DrainFailed {
		return &control.Error{Kind: last.ErrorKind, Message: last.Error}
	}
	return a.result(operationTable, raw)
}

func drainProgress(v *control.OperationView) string {
	line := v.ID + ":"
	for _, it := range v.Items {
		if it.Phase == control.DrainMoving {
			line += " " + it.Object
		}
	}
	if v.Percent != nil {
		line = progress(line, int64(*v.Percent*10), 1000)
	}
	return line
}

func (a *app) gatewayCmd() *cobra.Command {
	return noun("gateway", "Gateways", a.listCmd(gatewayTable), a.showCmd(gatewayTable, "N"),
		a.deleteCmd(gatewayTable, "remove N", false))
}
