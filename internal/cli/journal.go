package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/journal"
)

func (a *app) journalCmd() *cobra.Command {
	var size sizeFlag
	var devices []string
	create := a.verb("create NODE/JNL --size S", "Create a journal", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		return a.make(ctx, journalTable, path(journalTable.kind, ""),
			control.JournalRequest{Name: args[0], Size: size.bytes, Devices: devices})
	})
	create.Flags().Var(&size, "size", "size of all devices together")
	create.Flags().StringArrayVar(&devices, "device", nil, "file or block device on the node; may be repeated")
	must(create.MarkFlagRequired("size"))
	var more sizeFlag
	var device string
	add := a.verb("add NODE/JNL (--size S | --device PATH)", "Grow a journal by a file or device, while it is in use", cobra.ExactArgs(1),
		func(ctx context.Context, args []string) error {
			return a.make(ctx, journalTable, path(journalTable.kind, args[0], "add"), control.JournalAddRequest{Size: more.bytes, Device: device})
		})
	add.Flags().Var(&more, "size", "size of a new file beside the journal's own")
	add.Flags().StringVar(&device, "device", "", "file or block device on the node; all of it is taken, what it holds is lost")
	dump := a.verb("dump PATH...", "Print the contents of a journal's files on this machine", cobra.MinimumNArgs(1),
		func(_ context.Context, args []string) error { return a.dump(args) })
	return noun("journal", "Journals of nodes", create, a.listCmd(journalTable), a.showCmd(journalTable, "NODE/JNL"),
		a.deleteCmd(journalTable, "delete NODE/JNL", true), add, dump)
}

// dump reads the files itself: it is for when nothing else runs.
func (a *app) dump(paths []string) (err error) {
	var devs []block.Device
	defer func() {
		for _, d := range devs {
			err = errors.Join(err, d.Close())
		}
	}()
	for _, p := range paths {
		d, err := block.OpenFile(p)
		if err != nil {
			return fmt.Errorf("journal file %s: %w", p, err)
		}
		devs = append(devs, d)
	}
	return journal.Dump(a.stdout, devs)
}
