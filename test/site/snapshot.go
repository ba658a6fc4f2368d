package site

import (
	"path/filepath"
	"strings"
	"syscall"

	"gantline/internal/statefile"
)

// Snapshot is the node as its disk is at this moment, to be started with StartIsolated: what kill -9 would leave. The node itself stands still
// for the time of the copy, and goes on; the other finds nobody. It must have its volumes and journals below its data directory.
func (s *Site) Snapshot(p *Process, name string) *Process {
	s.T.Helper()
	dir := filepath.Join(s.Dir, name)
	if p.Alive() {
		p.Signal(syscall.SIGSTOP)
		defer p.Signal(syscall.SIGCONT)
	}
	s.Tool("cp", "-r", "--preserve=timestamps", "--sparse=always", p.Dir, dir)
	f, body, _, err := statefile.Open(filepath.Join(dir, "node.state"))
	if err == nil {
		text := strings.ReplaceAll(string(body), p.Dir+"/", dir+"/")
		for _, other := range s.All() { // one that pulls dials by itself
			if at := other.Ready["listen"]; at != "" {
				text = strings.ReplaceAll(text, `"`+at+`"`, `"127.0.0.1:1"`)
			}
		}
		err = f.Save([]byte(text))
	}
	if err != nil {
		s.T.Fatalf("snapshot of %s: %v", p.Name, err)
	}
	c := s.Extra(p.Role, p.Name, p.flags...)
	c.Dir, c.Socket = dir, dir+".sock"
	return c
}
