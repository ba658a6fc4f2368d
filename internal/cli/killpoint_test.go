package cli

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// A process dies at its kill point once in the life of its data directory, and says so before.
func TestKillPoint(t *testing.T) {
	if dir := os.Getenv("GANTLINE_TEST_KILL_DIR"); dir != "" {
		point, err := killPoint(os.LookupEnv, dir, os.Stderr)
		if err != nil {
			t.Fatal(err)
		}
		point("decide", "before")
		point("switch", "after")
		point("decide", "after")
		os.Exit(7)
	}
	dir := t.TempDir()
	run := func(hooks string) (string, error) {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKillPoint$")
		cmd.Env = append(os.Environ(), "GANTLINE_TEST_KILL_DIR="+dir, "GANTLINE_TEST_HOOKS="+hooks, "GANTLINE_KILL_AT=decide.after")
		var b bytes.Buffer
		cmd.Stderr = &b
		err := cmd.Run()
		return b.String(), err
	}
	status := func(err error) syscall.WaitStatus {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return exit.Sys().(syscall.WaitStatus)
	}
	if _, err := run("0"); status(err).ExitStatus() != 7 {
		t.Fatalf("without hooks: %v", err)
	}
	out, err := run("1")
	if st := status(err); !st.Signaled() || st.Signal() != syscall.SIGKILL || !strings.Contains(out, "kill point decide") {
		t.Fatalf("first time: %v, %q", err, out)
	}
	if _, err := run("1"); status(err).ExitStatus() != 7 {
		t.Fatalf("second time: %v", err)
	}
}
