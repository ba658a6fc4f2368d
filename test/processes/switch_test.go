package processes

import (
	"bytes"
	"strings"
	"syscall"
	"testing"
	"time"

	"gantline/test/site"
)

// A virtual volume is led to another volume while the old node says nothing. By policy, what is in flight there is answered when it
// answers (finish, hold) or fails at once (error); new requests are served by the new node at once (finish), when what was in
// flight is over (hold), or within a second (error).
func TestSwitchPolicies(t *testing.T) {
	t.Parallel()
	s := site.Start(t, nil)
	for _, node := range []string{"a", "b"} {
		s.Do("volume", "create", node+"/v", "--size", "16MiB")
	}
	s.Do("vvol", "create", "disk", "--volume", "a/v")
	d := s.Dial(s.G, "disk")
	data := bytes.Repeat([]byte{7}, 4096)
	for _, c := range []struct {
		policy, fails string
		waits         bool // new requests, for what is in flight
	}{{"finish", "", false}, {"hold", "", true}, {"error", "input/output error", false}} {
		s.Do("vvol", "switch", "disk", "--volume", "a/v")
		if err := site.Write(d, 0, data, 5*time.Second); err != nil {
			t.Fatal(err)
		}
		s.A.Signal(syscall.SIGSTOP)
		old := make(chan error, 1)
		go func() { old <- site.Write(d, 4096, data, 10*time.Second) }()
		time.Sleep(100 * time.Millisecond) // it is on its way
		s.Do("vvol", "switch", "disk", "--volume", "b/v", "--in-flight", c.policy)
		if c.fails != "" {
			select {
			case err := <-old:
				if err == nil || !strings.Contains(err.Error(), c.fails) {
					t.Errorf("%s: what was in flight: %v", c.policy, err)
				}
			case <-time.After(time.Second):
				t.Errorf("%s: what was in flight is not answered", c.policy)
			}
		}
		next := make(chan error, 1)
		begin := time.Now()
		go func() { next <- site.Write(d, 8192, data, 10*time.Second) }()
		select {
		case err := <-next:
			if err != nil || c.waits {
				t.Errorf("%s: a new write, after %v: %v", c.policy, time.Since(begin), err)
			}
		case <-time.After(2 * time.Second):
			if !c.waits {
				t.Errorf("%s: a new write waits for the old node", c.policy)
			}
		}
		s.A.Signal(syscall.SIGCONT)
		if c.waits {
			if err := <-next; err != nil {
				t.Errorf("%s: a new write: %v", c.policy, err)
			}
		}
		if c.fails == "" {
			if err := <-old; err != nil {
				t.Errorf("%s: what was in flight: %v", c.policy, err)
			}
		}
		if got, err := site.Read(s.Dial(s.B, "v"), 8192, 4096); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: the new write is not at the new node (%v)", c.policy, err)
		}
		if err := site.Write(d, 8192, make([]byte, 4096), 5*time.Second); err != nil { // for the next policy
			t.Fatal(err)
		}
	}
	if r := s.CLI("vvol", "switch", "disk", "--volume", "a/v", "--in-flight", "maybe"); r.Code != 2 {
		t.Error(r)
	}
}
