package site

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"time"

	"gantline/internal/control"
)

const (
	commandTimeout = 90 * time.Second
	httpTimeout    = 10 * time.Second
	maxAnswer      = 16 << 20
)

// Result of a command.
type Result struct {
	Command  string
	Code     int
	Out, Err string
}

func (r Result) String() string {
	return fmt.Sprintf("%s: exit %d\n%s%s", r.Command, r.Code, r.Out, r.Err)
}

// CLI runs a command, given as one line of words or as several words.
func (s *Site) CLI(words ...string) Result {
	s.T.Helper()
	if len(words) == 1 {
		words = strings.Fields(words[0])
	}
	return s.Run(append([]string{s.Bin}, words...)...)
}

// Run runs any program in the environment of the site's commands.
func (s *Site) Run(words ...string) Result {
	s.T.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Env = append(environment(), "GANTLINE_MANAGER="+s.url)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	r := Result{Command: strings.Join(words, " "), Out: out.String(), Err: errs.String()}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		s.T.Fatalf("%s did not end within %v\n%s%s", r.Command, commandTimeout, r.Out, r.Err)
	case errors.As(err, &exit):
		r.Code = exit.ExitCode()
	case err != nil:
		s.T.Fatalf("%s: %v", r.Command, err)
	}
	return r
}

// Do runs a command that must succeed and returns its standard output. A disk that stalls for seconds makes a command
// time out, with the advice to repeat it: so it is repeated, and a deletion may then find nothing left.
func (s *Site) Do(words ...string) string {
	s.T.Helper()
	r := s.CLI(words...)
	for try := 0; r.Code == 5 && try < 5; try++ {
		s.T.Logf("repeated: %v", r)
		time.Sleep(time.Second)
		if r = s.CLI(words...); r.Code == 3 && strings.Contains(r.Command, " delete ") {
			return ""
		}
	}
	if r.Code != 0 {
		s.T.Fatal(r)
	}
	return r.Out
}

// Tool runs another program, which must succeed.
func (s *Site) Tool(words ...string) string {
	s.T.Helper()
	r := s.Run(words...)
	if r.Code != 0 {
		s.T.Fatal(r)
	}
	return r.Out
}

// ErrNotFound: the manager answered, and has no such object.
var ErrNotFound = errors.New("not found")

// Get reads from the manager's API.
func (s *Site) Get(path string, into any) error {
	ctx, cancel := context.WithTimeout(context.Background(), httpTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+path, nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	switch {
	case err != nil:
		return err
	case res.StatusCode == http.StatusNotFound:
		return ErrNotFound
	case res.StatusCode != http.StatusOK:
		return fmt.Errorf("GET %s: %s: %s", path, res.Status, body)
	}
	return json.Unmarshal(body, into)
}

// Group is `group show`; an empty one if it cannot be read now.
func (s *Site) Group(name string) control.GroupView {
	var v control.GroupView
	_ = s.Get("/v1/groups/"+name, &v) // whoever polls asks again
	return v
}

// Move is `migrate show`; an empty one if it cannot be read now.
func (s *Site) Move(name string) control.MigrationView {
	var v control.MigrationView
	_ = s.Get("/v1/migrations/"+name, &v)
	return v
}

// State of a group, "" if it is not known.
func (s *Site) State(group string) string {
	if st := s.Group(group).State; st != nil {
		return *st
	}
	return ""
}

// InStep says whether a group is paired and its secondary equals the primary.
func (s *Site) InStep(group string) bool {
	g := s.Group(group)
	return g.State != nil && *g.State == "paired" && g.Lag.Writes != nil && *g.Lag.Writes == 0
}

// AwaitInStep waits for that.
func (s *Site) AwaitInStep(group string, limit time.Duration) {
	s.T.Helper()
	if !Poll(limit, func() bool { return s.InStep(group) }) {
		g, _ := json.Marshal(s.Group(group))
		s.T.Fatalf("group %s not paired with lag 0 within %v: %s", group, limit, g)
	}
}

// AwaitPhase waits for one of the phases of a move and returns the one that came.
func (s *Site) AwaitPhase(name string, limit time.Duration, phases ...string) control.MigrationView {
	s.T.Helper()
	var m control.MigrationView
	ok := Poll(limit, func() bool {
		m = s.Move(name)
		for _, p := range phases {
			if m.Phase == p {
				return true
			}
		}
		return false
	})
	if !ok {
		text, _ := json.Marshal(m)
		s.T.Fatalf("move %s not in %v within %v: %s", name, phases, limit, text)
	}
	return m
}
