package cli

import (
	"github.com/spf13/cobra"

	"gantline/internal/control"
)

// later is a verb that a later version brings: it is refused, never accepted and ignored.
func (a *app) later(use, what string) *cobra.Command {
	return &cobra.Command{Use: use, Short: "Not built yet", DisableFlagParsing: true, RunE: func(*cobra.Command, []string) error {
		a.ran = true
		return control.NotBuilt(what)
	}}
}

func (a *app) laters(n string, verbs ...string) *cobra.Command {
	var list []*cobra.Command
	for _, v := range verbs {
		list = append(list, a.later(v, n+" "+v))
	}
	return noun(n, "Not built yet", list...)
}

func (a *app) laterCmds() []*cobra.Command {
	return []*cobra.Command{
		a.later("top", "top"), a.later("check", "check"),
		a.laters("pool", "create", "list", "show", "delete"),
		a.laters("agent", "attach", "detach"),
		a.laters("pki", "init", "issue", "show"),
		a.laters("token", "create", "list", "delete"),
	}
}
