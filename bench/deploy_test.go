package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// The test binary plays gantline when it is started by deploy: deployments are tested before, and apart from, the
// program that they start.
func TestMain(m *testing.M) {
	if os.Getenv("BENCH_TEST_PLAYS_GANTLINE") != "" && len(os.Args) > 1 {
		os.Exit(playGantline(os.Args[1:]))
	}
	os.Exit(m.Run())
}

func playGantline(args []string) int {
	if args[0] != "serve" {
		if args[0] == "refuse" {
			fmt.Fprintln(os.Stderr, "refused: volume is in another group")
			return 4
		}
		fmt.Println(strings.Join(args, " "), os.Getenv("GANTLINE_MANAGER"))
		return 0
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	role, name := args[1], "m"
	if i := slices.Index(args, "--name"); i > 0 {
		name = args[i+1]
	}
	if role == "node" && name == os.Getenv("BENCH_TEST_NODE_DIES") {
		fmt.Fprintln(os.Stderr, "journal is damaged")
		return 1
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 1
	}
	var asked atomic.Int64
	go http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		lag := "null" // not known at first, then falling
		if n := asked.Add(1); n > 2 {
			lag = fmt.Sprint(max(0, 5-n))
		}
		if r.URL.Path == "/v1/groups/stuck" {
			lag = "7"
		}
		fmt.Fprintf(w, `{"state":"paired","lag":{"writes":%s}}`, lag)
	}))
	fmt.Fprintf(os.Stderr, "INFO ready %s %s listen=%v\n", role, name, listener.Addr())
	<-term
	return 0
}

func TestDeployment(t *testing.T) {
	t.Setenv("BENCH_TEST_PLAYS_GANTLINE", "1")
	ctx := context.Background()
	d, err := deploy(ctx, os.Args[0], t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.stop(); err != nil {
			t.Error(err)
		}
		for name, p := range d.nodes {
			select {
			case <-p.done:
			default:
				t.Errorf("node %s still runs", name)
			}
		}
	}()
	out, err := d.cli(ctx, time.Minute, "volume", "list")
	if err != nil || strings.TrimSpace(string(out)) != "volume list "+d.url {
		t.Errorf("a command got %q, %v", out, err)
	}
	if err := d.commands(ctx, "volume list", "refuse it"); err == nil || !strings.Contains(err.Error(), "another group") {
		t.Errorf("a refusal does not say why: %v", err)
	}
	if _, err := d.waitLag(ctx, "g", 10*time.Second); err != nil {
		t.Error(err)
	}
	if _, err := d.waitLag(ctx, "stuck", 50*time.Millisecond); err == nil {
		t.Error("a lag that stays was taken for none")
	}
	if m, err := d.nodes[nodeA].memory(); err != nil || m < 1<<16 {
		t.Errorf("memory is %d, %v", m, err)
	}
}

func TestDeploymentTellsWhoDied(t *testing.T) {
	t.Setenv("BENCH_TEST_PLAYS_GANTLINE", "1")
	t.Setenv("BENCH_TEST_NODE_DIES", nodeB)
	_, err := deploy(context.Background(), os.Args[0], t.TempDir())
	if err == nil || !strings.Contains(err.Error(), "node b") || !strings.Contains(err.Error(), "journal is damaged") {
		t.Errorf("got %v", err)
	}
}
