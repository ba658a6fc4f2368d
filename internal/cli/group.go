package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"gantline/internal/control"
)

// settingsFlags adds the flags of a group's settings to c. The result tells which of them were given.
func settingsFlags(c *cobra.Command) func() control.SettingsChange {
	var in control.SettingsChange
	var interval, sendEvery, rpo time.Duration
	var sendBytes, limit sizeFlag
	f := c.Flags()
	f.StringVar(&in.Mode, "mode", "", "async (default), sync or periodic")
	f.StringVar(&in.Log, "log", "", "at the primary: journal (default), on disk, or queue, in memory with a map of what is being written; sync needs a journal")
	f.StringVar(&in.Transfer, "transfer", "", "who dials and says when: push (default), the primary; pull, the secondary")
	f.StringVar(&in.Retain, "retain", "", "how long the primary keeps a record: until it is applied (default), or transferred: durable in the secondary's journal")
	f.DurationVar(&interval, "interval", 0, "periodic: from the begin of one copy to that of the next (default 30s)")
	f.DurationVar(&sendEvery, "send-every", 0, "async: send at most this often; 0s: at once")
	f.Var(&sendBytes, "send-bytes", "async: send when so much waits, or, with --send-every, after that time; 0: do not wait for a quantity")
	f.StringVar(&in.OnLinkLoss, "on-link-loss", "", "sync: continue (default) without a copy, or stop the hosts")
	f.DurationVar(&rpo, "rpo", 0, "a secondary more behind than this is late; 0: never")
	f.Var(&limit, "limit", "bytes a second to the secondary; 0: none")
	f.StringVar(&in.Compress, "compress", "", "off (default), s2 or zstd")
	return func() control.SettingsChange {
		for _, d := range []struct {
			flag string
			from time.Duration
			to   **int64
		}{{"interval", interval, &in.IntervalMS}, {"send-every", sendEvery, &in.SendEveryMS}, {"rpo", rpo, &in.RPOMS}} {
			if f.Changed(d.flag) {
				ms := int64((d.from + time.Millisecond - 1) / time.Millisecond)
				*d.to = &ms
			}
		}
		for _, d := range []struct {
			flag string
			from *sizeFlag
			to   **int64
		}{{"send-bytes", &sendBytes, &in.SendBytes}, {"limit", &limit, &in.Limit}} {
			if f.Changed(d.flag) {
				*d.to = &d.from.bytes
			}
		}
		return in
	}
}

func (a *app) groupCmd() *cobra.Command {
	suspend := a.verb("suspend G", "Stop copying and mark what changes", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		return a.make(ctx, groupTable, path(groupTable.kind, args[0], "suspend"), struct{}{})
	})
	return noun("group", "Consistency groups", a.groupCreate(), a.listCmd(groupTable), a.showCmd(groupTable, "G"), suspend,
		a.groupSet(), a.groupResume(), a.deleteCmd(groupTable, "delete G", false), a.groupVerify(),
		a.groupPromote(), a.later("failback", "group failback"), a.later("test", "group test"))
}

func (a *app) groupCreate() *cobra.Command {
	var in control.GroupRequest
	var settings func() control.SettingsChange
	c := a.verb("create G --primary NODE --secondary NODE", "Create a group", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		in.Name, in.SettingsChange = args[0], settings()
		return a.make(ctx, groupTable, path(groupTable.kind, ""), in)
	})
	settings = settingsFlags(c)
	f := c.Flags()
	f.StringVar(&in.Primary, "primary", "", "node whose volumes hosts write")
	f.StringVar(&in.Secondary, "secondary", "", "node that keeps the copy")
	f.StringVar(&in.PrimaryJournal, "primary-journal", "", "default: NODE/G of 1 GiB is made; none with --log queue")
	f.StringVar(&in.SecondaryJournal, "secondary-journal", "", "default: NODE/G of 1 GiB is made")
	must(c.MarkFlagRequired("primary"))
	must(c.MarkFlagRequired("secondary"))
	return c
}

func (a *app) groupSet() *cobra.Command {
	var settings func() control.SettingsChange
	c := a.verb("set G FLAGS...", "Change how a live group copies", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		in := settings()
		if in == (control.SettingsChange{}) {
			return control.Errorf(control.KindUsage, "group set %s: nothing to change: give at least one flag", args[0])
		}
		return a.make(ctx, groupTable, path(groupTable.kind, args[0], "set"), in)
	})
	settings = settingsFlags(c)
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
		case *g.State == "failed", *g.State == "split-brain", *g.State == control.RoleSuperseded:
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
			in := control.PairRequest{Primary: args[1], Secondary: args[2], AssumeEqual: equal}
			raw, done, err := a.change(ctx, http.MethodPost, path(groupTable.kind, args[0], "pairs"), in)
			if err != nil || done {
				return err
			}
			return a.untilPaired(ctx, args[0], groupTable, raw, "initial copy")
		})
	add.Flags().BoolVar(&equal, "assume-equal", false, "copy nothing: both hold the same (samples are compared)")
	remove := a.verb("remove G PRIMARY_VOLUME", "Take a pair out of its group; both volumes keep what they hold", cobra.ExactArgs(2),
		func(ctx context.Context, args []string) error {
			_, _, err := a.change(ctx, http.MethodDelete, path(groupTable.kind, args[0], "pairs")+"?primary="+url.QueryEscape(args[1]), nil)
			return err
		})
	return noun("pair", "Pairs of volumes in groups", add, a.listCmd(pairTable), remove)
}
