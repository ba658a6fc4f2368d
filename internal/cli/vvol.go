package cli

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"gantline/internal/control"
)

func (a *app) vvolCmd() *cobra.Command {
	return noun("vvol", "Virtual volumes: what hosts open", a.vvolCreate(), a.listCmd(vvolTable), a.showCmd(vvolTable, "NAME"),
		a.vvolURI(), a.vvolAllow(), a.vvolDeny(), a.vvolSwitch(), a.deleteCmd(vvolTable, "delete NAME", false))
}

func (a *app) vvolCreate() *cobra.Command {
	var volume, pool, group string
	var size sizeFlag
	var hosts []string
	c := a.verb("create NAME --volume NODE/VOL", "Create a virtual volume", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		switch {
		case pool != "":
			return control.NotBuilt("vvol create --pool")
		case group != "":
			return control.NotBuilt("vvol create --group")
		case volume == "":
			return control.Errorf(control.KindUsage, "vvol create %s: --volume NODE/VOL says where it leads", args[0])
		case size.text != "":
			return control.Errorf(control.KindUsage, "vvol create %s: --size goes with --pool or --group; a volume has its size", args[0])
		}
		return a.make(ctx, vvolTable, path(vvolTable.kind, ""), control.VvolRequest{Name: args[0], Volume: volume, Hosts: hosts})
	})
	f := c.Flags()
	f.StringVar(&volume, "volume", "", "volume that it leads to")
	f.StringVar(&pool, "pool", "", "pool to make the volume in")
	f.StringVar(&group, "group", "", "group to make the volumes for")
	f.Var(&size, "size", "size, with --pool or --group")
	f.StringArrayVar(&hosts, "host", nil, "TLS name or IP address that may open it; may be repeated (none: all on loopback)")
	return c
}

func (a *app) vvolURI() *cobra.Command {
	return a.verb("uri NAME", "Print where hosts open it", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		raw, err := a.get(ctx, path(vvolTable.kind, args[0]))
		if err != nil {
			return err
		}
		var v control.VvolView
		if err := json.Unmarshal(raw, &v); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
		if len(v.URIs) == 0 {
			return control.Errorf(control.KindRefused, "vvol %s: no gateway is registered", args[0])
		}
		switch a.output {
		case "json", "yaml":
			list, err := json.Marshal(v.URIs)
			if err != nil {
				return err
			}
			return a.print(vvolTable, list)
		}
		for _, u := range v.URIs {
			fmt.Fprintln(a.stdout, u)
		}
		return nil
	})
}

func (a *app) vvolAllow() *cobra.Command {
	var readOnly bool
	c := a.verb("allow NAME HOST", "Let a host open it", cobra.ExactArgs(2), func(ctx context.Context, args []string) error {
		return a.make(ctx, vvolTable, path(vvolTable.kind, args[0], "allow"), control.HostRequest{Host: args[1], ReadOnly: readOnly})
	})
	c.Flags().BoolVar(&readOnly, "read-only", false, "for reading only")
	return c
}

func (a *app) vvolDeny() *cobra.Command {
	return a.verb("deny NAME HOST", "Do not let a host open it any more", cobra.ExactArgs(2), func(ctx context.Context, args []string) error {
		return a.make(ctx, vvolTable, path(vvolTable.kind, args[0], "deny"), control.HostRequest{Host: args[1]})
	})
}

// inFlightHelp explains a flag that two commands have.
const inFlightHelp = "--in-flight says what becomes of requests under way at the switch:\n" +
	"  finish  they run out on the old path; new ones go the new path at once\n" +
	"  hold    they run out on the old path; new ones are held until then\n" +
	"  error   they fail at once, and the host sends them again, on the new path; new ones are held for a second at most"

func (a *app) vvolSwitch() *cobra.Command {
	var in control.SwitchRequest
	c := a.verb("switch NAME --volume V", "Lead it to another volume", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		return a.make(ctx, vvolTable, path(vvolTable.kind, args[0], "switch"), in)
	})
	c.Flags().StringVar(&in.Volume, "volume", "", "the volume")
	c.Long = "Lead a virtual volume to another volume of the same size. Hosts keep their connections; nothing is copied.\n\n" + inFlightHelp
	c.Flags().StringVar(&in.InFlight, "in-flight", "", "finish (default), hold or error: what becomes of requests under way, see above")
	c.Flags().StringArrayVar(&in.Gateways, "gateway", nil, "only at this gateway")
	must(c.MarkFlagRequired("volume"))
	return c
}
