package cli

import (
	"github.com/spf13/cobra"
)

func (a *app) demoCmd() *cobra.Command { return a.later("demo", "demo") }
