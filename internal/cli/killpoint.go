package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

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
// directory: the fact is on disk before it dies, so that the restarted process goes on. With GANTLINE_STOP_AT it stands still
// there instead, once, until it gets SIGCONT, so that another process dies while this one is at the step. Without, it does nothing.
func killPoint(env func(string) (string, bool), dataDir string, stderr io.Writer) (func(step, edge string), error) {
	kill, err := pointAt(env, "GANTLINE_KILL_AT", filepath.Join(dataDir, "killed-at-"), stderr, func(step string) {
		fmt.Fprintf(stderr, "kill point %s\n", step)
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {} // the signal comes at any moment; nothing may happen until then
	})
	if err != nil {
		return nil, err
	}
	stop, err := pointAt(env, "GANTLINE_STOP_AT", filepath.Join(dataDir, "stopped-at-"), stderr, func(step string) {
		fmt.Fprintf(stderr, "stop point %s\n", step)
		_ = unix.Kill(os.Getpid(), unix.SIGSTOP)
		time.Sleep(stopTakes)
	})
	return func(step, edge string) {
		kill(step, edge)
		stop(step, edge)
	}, err
}

// stopTakes is how long it may take until a signal to oneself has stopped all threads.
const stopTakes = 50 * time.Millisecond

// pointAt does something at the step that a variable of the environment names, once; memory is the beginning of a file's path.
func pointAt(env func(string) (string, bool), key, memory string, stderr io.Writer, do func(step string)) (func(step, edge string), error) {
	hooks, _ := env("GANTLINE_TEST_HOOKS")
	at, set := env(key)
	if hooks != "1" || !set || at == "" {
		return func(string, string) {}, nil
	}
	step, edge, _ := strings.Cut(at, ".")
	if !slices.Contains(killSteps, step) || edge != "before" && edge != "after" {
		return nil, control.Errorf(control.KindUsage, "%s=%q: it is STEP.before or STEP.after, STEP one of %s",
			key, at, strings.Join(killSteps, ", "))
	}
	memory += at
	return func(s, e string) {
		if s != step || e != edge {
			return
		}
		if err := remember(memory); err != nil {
			if !errors.Is(err, os.ErrExist) {
				fmt.Fprintf(stderr, "%s=%s is passed by: %v\n", key, at, err)
			}
			return
		}
		do(step)
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
