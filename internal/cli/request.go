package cli

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

func sortedKeys(m map[string]any) []string { return slices.Sorted(maps.Keys(m)) }

// path builds an address below /v1; NODE/NAME keeps its slash.
func path(kind, name string, rest ...string) string {
	parts := strings.Split(name, "/")
	if kind == migrationTable.kind {
		parts = []string{name} // an id, or what was moved, be it NODE/VOLUME
	}
	for i := range parts {
		parts[i] = url.PathEscape(parts[i])
	}
	p := "/v1/" + kind
	if name != "" {
		p += "/" + strings.Join(parts, "/")
	}
	return strings.Join(append([]string{p}, rest...), "/")
}

// get fetches one address.
func (a *app) get(ctx context.Context, p string) (json.RawMessage, error) {
	c, err := a.api()
	if err != nil {
		return nil, err
	}
	ctx, cancel := a.limited(ctx)
	defer cancel()
	var raw json.RawMessage
	err = c.Do(ctx, http.MethodGet, p, nil, &raw)
	return raw, err
}

// change makes a changing request. In a dry run it prints the plan and done is true.
func (a *app) change(ctx context.Context, method, p string, in any) (raw json.RawMessage, done bool, err error) {
	c, err := a.api()
	if err != nil {
		return nil, false, err
	}
	ctx, cancel := a.limited(ctx)
	defer cancel()
	if a.dryRun {
		sep := "?"
		if strings.Contains(p, "?") {
			sep = "&"
		}
		p += sep + "dry_run=true"
	}
	if err := c.Do(ctx, method, p, in, &raw); err != nil {
		return nil, false, err
	}
	if a.dryRun {
		return nil, true, a.plan(raw)
	}
	return raw, false, nil
}

// make creates or changes an object and prints it.
func (a *app) make(ctx context.Context, t table, p string, in any) error {
	raw, done, err := a.change(ctx, http.MethodPost, p, in)
	if err != nil || done {
		return err
	}
	return a.result(t, raw)
}

// result prints an object after a command: all of it, or with --no-wait its id alone.
func (a *app) result(t table, raw json.RawMessage) error {
	if a.noWait {
		kept := a.output
		a.output = "name"
		defer func() { a.output = kept }()
	}
	return a.print(t, raw)
}

// listCmd and showCmd are the same for every kind.
func (a *app) listCmd(t table) *cobra.Command {
	return a.verb("list", "List all "+t.kind, cobra.NoArgs, func(ctx context.Context, _ []string) error {
		raw, err := a.get(ctx, path(t.kind, ""))
		if err != nil {
			return err
		}
		return a.print(t, raw)
	})
}

func (a *app) showCmd(t table, arg string) *cobra.Command {
	return a.verb("show "+arg, "Show one "+t.single, cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		raw, err := a.get(ctx, path(t.kind, args[0]))
		if err != nil {
			return err
		}
		return a.show(t, raw)
	})
}

// deleteCmd deletes; destroys says that data goes with it.
func (a *app) deleteCmd(t table, use string, destroys bool) *cobra.Command {
	return a.verb(use, "Delete one "+t.single, cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		if destroys {
			if err := a.confirm(t.single, args[0]); err != nil {
				return err
			}
		}
		_, _, err := a.change(ctx, http.MethodDelete, path(t.kind, args[0]), nil)
		return err
	})
}
