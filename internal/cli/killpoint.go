package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"gantline/internal/control"
)

var killSteps = []string{
	control.StepRegister, control.StepCopy, control.StepThrough, control.StepSwitch, control.StepPend, control.StepSeal,
	control.StepDecide, control.StepSource, control.StepRun, control.StepDrained, control.StepSingle, control.StepFill,
	control.StepDeregister,
	control.PointPath, control.PointAbort, control.PointAborted, control.PointUngroup, control.PointRefuse, control.PointReopen, control.PointCancel,
	control.PointCompare,
	control.StepPromoteMaps, control.StepPromoteCut, control.StepPromoteOpen, control.StepPromoteApply, control.StepPromoteServe,
	control.StepPromoteRecord, control.StepSupersede,
	control.PointGrow, control.PointResize,
	control.PointCarryMake, control.PointCarry, control.PointCarried, control.PointCarryFront, control.PointCarryFree,
}

// killPoint makes the function that a role calls around each step of a move. With GANTLINE_TEST_HOOKS=1 and
// GANTLINE_KILL_AT=STEP.before or STEP.after the process kills itself there with SIGKILL, once in the life of its data
// directory: the fact is on disk before it dies, so that the restarted process goes on. Without, it does nothing.
func killPoint(env func(string) (string, bool), dataDir string, stderr io.Writer) (func(step, edge string), error) {
	nothing := func(string, string) {}
	hooks, _ := env("GANTLINE_TEST_HOOKS")
	at, set := env("GANTLINE_KILL_AT")
	if hooks != "1" || !set || at == "" {
		return nothing, nil
	}
	step, edge, _ := strings.Cut(at, ".")
	if !slices.Contains(killSteps, step) || edge != "before" && edge != "after" {
		return nil, control.Errorf(control.KindUsage, "GANTLINE_KILL_AT=%q: it is STEP.before or STEP.after, STEP one of %s",
			at, strings.Join(killSteps, ", "))
	}
	memory := filepath.Join(dataDir, "killed-at-"+at)
	return func(s, e string) {
		if s != step || e != edge {
			return
		}
		if err := remember(memory); err != nil {
			if !errors.Is(err, os.ErrExist) {
				fmt.Fprintf(stderr, "kill point %s is passed by: %v\n", at, err)
			}
			return
		}
		fmt.Fprintf(stderr, "kill point %s\n", step)
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {} // the signal comes at any moment; nothing may happen until then
	}, nil
}

// remember makes a file durably, or says that it exists.
func remember(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
