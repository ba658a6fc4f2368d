package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"gantline/internal/control"
)

const (
	pollEvery    = 100 * time.Millisecond
	tellEvery    = time.Second
	managerAway  = 30 * time.Second // a waiting command outlives a restart of the manager
	defaultWait  = 60 * time.Second
	progressBars = 24 // characters
)

// progress adds a bar and percent to a line.
func progress(line string, done, total int64) string {
	share := 1.0
	if total > 0 {
		share = min(float64(done)/float64(total), 1)
	}
	filled := int(share * progressBars)
	return fmt.Sprintf("%s [%s%s] %5.1f %%", line, strings.Repeat("#", filled), strings.Repeat(".", progressBars-filled), 100*share)
}

func (a *app) terminal() bool {
	f, ok := a.stderr.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// await polls an object until look says it is done, telling its progress each second. It ends with KindTimeout by
// --timeout or Ctrl-C; what is waited for goes on.
func (a *app) await(ctx context.Context, p string, look func(json.RawMessage) (done bool, progress string, err error)) (json.RawMessage, error) {
	c, err := a.api()
	if err != nil {
		return nil, err
	}
	ctx, cancel := a.limited(ctx)
	defer cancel()
	tty, told := a.terminal(), time.Time{}
	tell := func(line string) {
		if time.Since(told) < tellEvery && !told.IsZero() || line == "" {
			return
		}
		told = time.Now()
		if tty {
			fmt.Fprintf(a.stderr, "\r\x1b[K%s", line)
		} else {
			fmt.Fprintln(a.stderr, line)
		}
	}
	if tty {
		defer fmt.Fprint(a.stderr, "\r\x1b[K")
	}
	var away time.Time
	for {
		var raw json.RawMessage
		err := c.Do(ctx, "GET", p, nil, &raw)
		switch {
		case ctx.Err() != nil:
			return nil, control.Errorf(control.KindTimeout, "stopped waiting for %s; what was begun goes on", strings.TrimPrefix(p, "/v1/"))
		case control.KindOf(err) == control.KindUnreachable:
			if away.IsZero() {
				away = time.Now()
			}
			if time.Since(away) > managerAway {
				return nil, err
			}
			tell("the manager does not answer")
		case err != nil:
			return nil, err
		default:
			away = time.Time{}
			done, line, err := look(raw)
			if err != nil || done {
				return raw, err
			}
			tell(line)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pollEvery):
		}
	}
}

// waitTables are the kinds that `wait` knows.
var waitTables = map[string]table{"node": nodeTable, "gateway": gatewayTable, "volume": volumeTable, "journal": journalTable,
	"vvol": vvolTable, "group": groupTable, "link": linkTable, "migration": migrationTable, "migrate": migrationTable}

func (a *app) waitCmd() *cobra.Command {
	var condition string
	c := a.verb("wait KIND NAME --for FIELD=VALUE | --for 'FIELD<=N'", "Wait until a field of an object has a value", cobra.ExactArgs(2),
		func(ctx context.Context, args []string) error {
			t, ok := waitTables[args[0]]
			if !ok {
				return control.Errorf(control.KindUsage, "wait %s: the kinds are node, gateway, volume, journal, vvol, group, link, migration", args[0])
			}
			cond, err := parseCondition(condition)
			if err != nil {
				return err
			}
			if a.timeout == 0 {
				a.timeout = defaultWait
			}
			raw, err := a.await(ctx, path(t.kind, args[1]), func(raw json.RawMessage) (bool, string, error) {
				v, err := decode(raw)
				if err != nil {
					return false, "", fmt.Errorf("answer: %w", err)
				}
				holds, now, err := cond.holds(v)
				return holds, fmt.Sprintf("%s %s: %s is %s", args[0], args[1], cond.field, now), err
			})
			if err != nil {
				return err
			}
			return a.print(t, raw)
		})
	c.Flags().StringVar(&condition, "for", "", "FIELD=VALUE, or 'FIELD<=N'; fields as `show -o json` has them, with dots")
	must(c.MarkFlagRequired("for"))
	return c
}

type condition struct {
	field, value string
	limit        float64
	atMost       bool
}

func parseCondition(s string) (condition, error) {
	if f, v, ok := strings.Cut(s, "<="); ok {
		n, err := strconv.ParseFloat(v, 64)
		if err != nil || f == "" {
			return condition{}, control.Errorf(control.KindUsage, "--for %q: a number stands behind <=", s)
		}
		return condition{field: f, limit: n, atMost: true}, nil
	}
	f, v, ok := strings.Cut(s, "=")
	if !ok || f == "" {
		return condition{}, control.Errorf(control.KindUsage, "--for %q: write FIELD=VALUE or 'FIELD<=N'", s)
	}
	return condition{field: f, value: v}, nil
}

// holds compares; a value that is not known holds only for =null. A field that does not exist is an error.
func (c condition) holds(v any) (bool, string, error) {
	got, ok := field(v, c.field)
	if !ok {
		return false, "", control.Errorf(control.KindUsage, "--for %s: there is no such field; `show -o json` has them", c.field)
	}
	if got == nil {
		return !c.atMost && c.value == "null", "not known", nil
	}
	text := plain(got)
	switch x := got.(type) {
	case json.Number:
		f, err := x.Float64()
		if err != nil {
			return false, x.String(), nil
		}
		if c.atMost {
			return f <= c.limit, x.String(), nil
		}
		want, err := strconv.ParseFloat(c.value, 64)
		return err == nil && f == want, x.String(), nil
	case string:
		return !c.atMost && x == c.value, text, nil
	}
	return !c.atMost && text == c.value, text, nil
}
