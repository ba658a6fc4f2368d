package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"gantline/internal/control"
)

// laterGroupFlags are flags of `group create` that are refused until they do something.
var laterGroupFlags = []string{"interval", "send-every", "send-bytes", "on-link-loss", "rpo", "limit", "compress"}

// laterDefaults are the values that change nothing.
var laterDefaults = map[string]string{"interval": "30s", "send-every": "0s", "send-bytes": "0", "on-link-loss": "continue",
	"rpo": "0", "limit": "0", "compress": "off"}

func (a *app) groupCmd() *cobra.Command {
	suspend := a.verb("suspend G", "Stop copying and mark what changes", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		return a.make(ctx, groupTable, path(groupTable.kind, args[0], "suspend"), struct{}{})
	})
	return noun("group", "Consistency groups", a.groupCreate(), a.listCmd(groupTable), a.showCmd(groupTable, "G"), suspend,
		a.groupResume(), a.deleteCmd(groupTable, "delete G", false), a.later("set", "group set"), a.later("verify", "group verify"),
		a.later("promote", "group promote"), a.later("failback", "group failback"), a.later("test", "group test"))
}

func (a *app) groupCreate() *cobra.Command {
	var in control.GroupRequest
	var c *cobra.Command
	c = a.verb("create G --primary NODE --secondary NODE", "Create a group", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		in.Name = args[0]
		for _, flag := range laterGroupFlags {
			if f := c.Flags().Lookup(flag); f.Changed && f.Value.String() != laterDefaults[flag] {
				return control.NotBuilt("group create --" + flag)
			}
		}
		return a.make(ctx, groupTable, path(groupTable.kind, ""), in)
	})
	f := c.Flags()
	f.StringVar(&in.Primary, "primary", "", "node whose volumes hosts write")
	f.StringVar(&in.Secondary, "secondary", "", "node that keeps the copy")
	f.StringVar(&in.Mode, "mode", "", "async (default), sync or periodic")
	f.StringVar(&in.Log, "log", "", "journal (default) or queue")
	f.StringVar(&in.PrimaryJournal, "primary-journal", "", "default: NODE/G of 1 GiB is made")
	f.StringVar(&in.SecondaryJournal, "secondary-journal", "", "default: NODE/G of 1 GiB is made")
	f.StringVar(&in.Transfer, "transfer", "", "push (default) or pull")
	f.StringVar(&in.Retain, "retain", "", "applied (default) or transferred")
	for _, flag := range laterGroupFlags {
		f.String(flag, laterDefaults[flag], "not built yet")
	}
	must(c.MarkFlagRequired("primary"))
	must(c.MarkFlagRequired("secondary"))
	return c
}

func (a *app) groupResume() *cobra.Command {
	var in control.ResumeRequest
	c := a.verb("resume G", "Resync what has changed, and wait until paired", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		raw, done, err := a.change(ctx, http.MethodPost, path(groupTable.kind, args[0], "resume"), in)
		if err != nil || done {
			return err
		}
		return a.untilPaired(ctx, args[0], groupTable, raw, "resync")
	})
	c.Flags().BoolVar(&in.AllowInconsistent, "allow-inconsistent", false, "even if the secondary is inconsistent meanwhile")
	return c
}

// untilPaired waits for a group, and prints what t is of.
func (a *app) untilPaired(ctx context.Context, group string, t table, raw json.RawMessage, what string) error {
	if a.noWait {
		return a.result(t, raw)
	}
	raw, err := a.await(ctx, path(groupTable.kind, group), func(raw json.RawMessage) (bool, string, error) {
		var g control.GroupView
		if err := json.Unmarshal(raw, &g); err != nil {
			return false, "", fmt.Errorf("answer: %w", err)
		}
		switch {
		case g.State == nil:
			return false, fmt.Sprintf("group %s: node %s does not answer", group, g.Primary), nil
		case *g.State == "paired":
			return true, "", nil
		case *g.State == "failed", *g.State == "split-brain":
			why := ""
			if g.Error != nil {
				why = ": " + *g.Error
			}
			return false, "", control.Errorf(control.KindFailed, "group %s is %s%s", group, *g.State, why)
		case *g.State == "suspended" && g.Suspended:
			return false, "", control.Errorf(control.KindRefused, "group %s is suspended by command; `gantline group resume %s` goes on", group, group)
		}
		return false, groupProgress(&g, what), nil
	})
	if err != nil {
		return err
	}
	if t.kind == groupTable.kind {
		return a.result(t, raw)
	}
	return nil
}

func groupProgress(g *control.GroupView, what string) string {
	line := fmt.Sprintf("group %s: %s", g.Name, *g.State)
	if c := g.Copy; c != nil {
		line = progress(fmt.Sprintf("group %s: %s %s", g.Name, *g.State, c.Kind), c.BytesDone, c.BytesTotal)
	} else if g.Lag.Writes != nil {
		line += fmt.Sprintf(", %s, %d writes behind", what, *g.Lag.Writes)
	}
	if g.BlockedOn != nil && *g.BlockedOn != "" {
		line += ", waits for " + *g.BlockedOn
	}
	return line
}

func (a *app) pairCmd() *cobra.Command {
	var equal bool
	add := a.verb("add G PRIMARY_VOLUME SECONDARY_VOLUME", "Add a pair, and wait until it is copied", cobra.ExactArgs(3),
		func(ctx context.Context, args []string) error {
			if equal {
				return control.NotBuilt("pair add --assume-equal")
			}
			in := control.PairRequest{Primary: args[1], Secondary: args[2]}
			raw, done, err := a.change(ctx, http.MethodPost, path(groupTable.kind, args[0], "pairs"), in)
			if err != nil || done {
				return err
			}
			return a.untilPaired(ctx, args[0], groupTable, raw, "initial copy")
		})
	add.Flags().BoolVar(&equal, "assume-equal", false, "copy nothing: both hold the same")
	return noun("pair", "Pairs of volumes in groups", add, a.listCmd(pairTable), a.later("remove", "pair remove"))
}
