package cli

import (
	"context"

	"github.com/spf13/cobra"

	"gantline/internal/control"
)

func (a *app) volumeCmd() *cobra.Command {
	var size sizeFlag
	var device string
	create := a.verb("create NODE/VOL --size S", "Create a volume", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		return a.make(ctx, volumeTable, path(volumeTable.kind, ""),
			control.VolumeRequest{Name: args[0], Size: size.bytes, Device: device})
	})
	create.Flags().Var(&size, "size", "size: 4096, 64KiB, 1.5GiB, 10GB")
	create.Flags().StringVar(&device, "device", "", "file or block device on the node (default DATA-DIR/volumes/NAME.raw)")
	must(create.MarkFlagRequired("size"))
	var larger sizeFlag
	resize := a.verb("resize NODE/VOL --size S", "Make a volume larger while hosts go on, and the other of its pair with it", cobra.ExactArgs(1),
		func(ctx context.Context, args []string) error {
			return a.make(ctx, volumeTable, path(volumeTable.kind, args[0], "resize"), control.VolumeResizeRequest{Size: larger.bytes})
		})
	resize.Flags().Var(&larger, "size", "new size, not smaller than it is; hosts see it when they connect anew")
	must(resize.MarkFlagRequired("size"))
	return noun("volume", "Volumes of nodes", create, a.listCmd(volumeTable), a.showCmd(volumeTable, "NODE/VOL"),
		a.deleteCmd(volumeTable, "delete NODE/VOL", true), resize)
}

// must is for what only a mistake in this package can make fail.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
