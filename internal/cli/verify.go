package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"gantline/internal/control"
)

var verifyTable = table{kind: groupTable.kind, single: "verify", name: "id", basic: []column{{"VERIFY", "id", nil}, {"STATE", "state", nil},
	{"CUT", "cut", nil}, {"COMPARED", "compared_bytes", bytesOf}, {"REPAIRED", "repaired_bytes", bytesOf}}}

func (a *app) groupVerify() *cobra.Command {
	var in control.VerifyRequest
	c := a.verb("verify G", "Compare both sides under load, and wait for the result (exit 6 if they differ)", cobra.ExactArgs(1),
		func(ctx context.Context, args []string) error {
			p := path(groupTable.kind, args[0], "verify")
			raw, done, err := a.change(ctx, http.MethodPost, p, in)
			if err != nil || done {
				return err
			}
			if a.noWait {
				return a.result(verifyTable, raw)
			}
			var v control.VerifyView
			if err := json.Unmarshal(raw, &v); err != nil {
				return fmt.Errorf("answer: %w", err)
			}
			return a.untilVerified(ctx, p, v.ID)
		})
	c.Flags().BoolVar(&in.Repair, "repair", false, "copy what differs to the secondary, as one step")
	return c
}

// untilVerified waits for one verify and prints what it found.
func (a *app) untilVerified(ctx context.Context, p, id string) error {
	var v control.VerifyView
	raw, err := a.await(ctx, p, func(raw json.RawMessage) (bool, string, error) {
		if err := json.Unmarshal(raw, &v); err != nil {
			return false, "", fmt.Errorf("answer: %w", err)
		}
		if v.ID != id {
			return false, "", control.Errorf(control.KindFailed, "group %s: verify %s has ended and %s has begun meanwhile", v.Group, id, v.ID)
		}
		return v.State != control.VerifyRunning, progress(fmt.Sprintf("group %s: verify", v.Group), v.ComparedBytes, v.TotalBytes), nil
	})
	if err != nil {
		return err
	}
	if err := a.show(verifyTable, raw); err != nil {
		return err
	}
	switch {
	case v.State == control.VerifyFailed:
		return control.Errorf(control.KindFailed, "group %s: verify: %s", v.Group, v.Error)
	case len(v.Different) > 0 && v.RepairedBytes == 0:
		return control.Errorf(control.KindDifferent, "group %s: the secondary differs in %d places; `gantline group verify %s --repair` copies them",
			v.Group, len(v.Different), v.Group)
	}
	return nil
}
