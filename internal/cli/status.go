package cli

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"gantline/internal/control"
)

func (a *app) statusCmd() *cobra.Command {
	return a.verb("status", "The whole at a glance", cobra.NoArgs, func(ctx context.Context, _ []string) error {
		raw, err := a.get(ctx, "/v1/status")
		if err != nil {
			return err
		}
		switch a.output {
		case "json":
			return printJSON(a.stdout, raw)
		case "yaml":
			return printYAML(a.stdout, raw)
		}
		return a.printStatus(raw)
	})
}

func (a *app) printStatus(raw json.RawMessage) error {
	var v control.StatusView
	var parts map[string]json.RawMessage
	if err := json.Unmarshal(raw, &v); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	if err := json.Unmarshal(raw, &parts); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	if a.output != "name" {
		if v.Healthy {
			fmt.Fprintln(a.stdout, "healthy")
		}
		for _, p := range v.Problems {
			fmt.Fprintln(a.stdout, "!", p)
		}
	}
	for _, t := range []table{nodeTable, gatewayTable, groupTable, migrationTable} {
		if a.output != "name" {
			fmt.Fprintf(a.stdout, "\n%s\n", t.kind)
		}
		if err := a.print(t, parts[t.kind]); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) eventsCmd() *cobra.Command {
	var follow bool
	c := a.verb("events", "What has happened", cobra.NoArgs, func(ctx context.Context, _ []string) error {
		client, err := a.api()
		if err != nil {
			return err
		}
		ctx, cancel := a.limited(ctx)
		defer cancel()
		return client.Events(ctx, 0, follow, func(e control.Event) error {
			if a.output == "json" {
				line, err := json.Marshal(e)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(a.stdout, string(line))
				return err
			}
			_, err := fmt.Fprintf(a.stdout, "%s  %-24s %-16s %s\n", e.At.Format("2006-01-02T15:04:05.000Z07:00"), e.Object, e.Kind, e.Message)
			return err
		})
	})
	c.Flags().BoolVar(&follow, "follow", false, "go on with what happens")
	return c
}
