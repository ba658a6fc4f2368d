package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"gantline/internal/control"
)

// version is set by the linker for releases.
var version = ""

func versionText() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

func (a *app) versionCmd() *cobra.Command {
	return a.verb("version", "Print the version", cobra.NoArgs, func(context.Context, []string) error {
		if a.output == "json" || a.output == "yaml" {
			raw, err := json.Marshal(map[string]string{"version": versionText(), "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH})
			if err != nil {
				return err
			}
			return a.print(table{}, raw)
		}
		_, err := fmt.Fprintf(a.stdout, "gantline %s %s %s/%s\n", versionText(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return err
	})
}

func (a *app) completionCmd() *cobra.Command {
	c := &cobra.Command{Use: "completion SHELL", Short: "Print a completion script for bash, zsh, fish or powershell", Args: cobra.ExactArgs(1)}
	c.RunE = func(cmd *cobra.Command, args []string) error {
		a.ran = true
		root := cmd.Root()
		switch args[0] {
		case "bash":
			return root.GenBashCompletionV2(a.stdout, true)
		case "zsh":
			return root.GenZshCompletion(a.stdout)
		case "fish":
			return root.GenFishCompletion(a.stdout, true)
		case "powershell":
			return root.GenPowerShellCompletionWithDesc(a.stdout)
		}
		return control.Errorf(control.KindUsage, "completion %q: it is bash, zsh, fish or powershell", args[0])
	}
	return c
}
