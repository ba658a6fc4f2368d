// Package client speaks the manager's HTTP interface: for the CLI, for nodes and for gateways. It decides nothing; errors
// keep the kind that the manager gave them, and a manager that cannot be reached is KindUnreachable.
package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"gantline/internal/control"
)

const (
	dialTimeout = 2 * time.Second
	maxAnswer   = 64 << 20 // bytes
	maxError    = 64 << 10 // bytes
)

// Client calls the first of its managers that answers, and stays with it until it does not. All methods may be called
// concurrently.
type Client struct {
	http *http.Client

	mu      sync.Mutex
	urls    []string
	current int
}

// New makes a client for manager URLs such as http://127.0.0.1:10820. It does not connect yet.
func New(urls ...string) (*Client, error) {
	if len(urls) == 0 {
		return nil, control.Errorf(control.KindUsage, "no manager is named")
	}
	for i, raw := range urls {
		u, err := url.Parse(raw)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return nil, control.Errorf(control.KindUsage, "manager %q: it is a URL such as http://127.0.0.1:10820", raw)
		}
		if u.Scheme == "https" {
			return nil, control.NotBuilt("a manager behind https")
		}
		urls[i] = strings.TrimRight(raw, "/")
	}
	transport := &http.Transport{
		DialContext:     (&net.Dialer{Timeout: dialTimeout}).DialContext,
		MaxConnsPerHost: 64, MaxIdleConnsPerHost: 8, IdleConnTimeout: time.Minute,
	}
	return &Client{http: &http.Client{Transport: transport}, urls: urls}, nil
}

// NewSocket makes a client for a node's own control socket, which answers in the manager's addresses.
func NewSocket(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "unix", path)
	}
	return &Client{http: &http.Client{Transport: &http.Transport{DialContext: dial, IdleConnTimeout: time.Minute}}, urls: []string{"http://node"}}
}

// Close lets go of idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

func (c *Client) base() (string, int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.urls[c.current], c.current
}

// next goes on to the next manager, unless somebody else has already.
func (c *Client) next(from int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == from {
		c.current = (c.current + 1) % len(c.urls)
	}
}

// Do makes one request. in nil: no body; out nil: the answer is dropped. out may be *json.RawMessage.
func (c *Client) Do(ctx context.Context, method, path string, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return fmt.Errorf("%s %s: %w", method, path, err)
		}
	}
	resp, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return c.lost(ctx, err)
	}
	if len(answer) > maxAnswer {
		return fmt.Errorf("%s %s: answer of more than %d bytes", method, path, maxAnswer)
	}
	if out == nil || len(answer) == 0 {
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("%s %s: answer: %w", method, path, err)
	}
	return nil
}

// send tries each manager once; what was sent may have been done even if it returns an error.
func (c *Client) send(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	var last error
	for range c.urls {
		base, index := c.base()
		var r io.Reader
		if body != nil {
			r = bytes.NewReader(body)
		}
		req, err := http.NewRequestWithContext(ctx, method, base+path, r)
		if err != nil {
			return nil, control.Errorf(control.KindUsage, "%s %s: %v", method, path, err)
		}
		if body != nil {
			req.Header.Set("Content-Type", "application/json")
		}
		resp, err := c.http.Do(req)
		if err == nil {
			if resp.StatusCode >= 400 {
				defer resp.Body.Close()
				return nil, readError(resp)
			}
			return resp, nil
		}
		if last = c.lost(ctx, err); ctx.Err() != nil {
			return nil, last
		}
		c.next(index)
	}
	return nil, last
}

func (c *Client) lost(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	base, _ := c.base()
	if ctx.Err() != nil {
		return control.Errorf(control.KindTimeout, "the manager at %s did not answer in time", base)
	}
	return control.Errorf(control.KindUnreachable, "the manager at %s cannot be reached (%v); is it running? "+
		"--manager or GANTLINE_MANAGER names another", base, errors.Unwrap(err))
}

func readError(resp *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxError))
	var e control.Error
	if err == nil && json.Unmarshal(body, &e) == nil && e.Kind != "" {
		return &e
	}
	return control.Errorf(control.KindFailed, "the manager answered %s: %.200s", resp.Status, body)
}

// SyncNode registers a node, or says that it is still there.
func (c *Client) SyncNode(ctx context.Context, r control.NodeReport) (control.NodeSyncReply, error) {
	var out control.NodeSyncReply
	err := c.Do(ctx, http.MethodPost, fmt.Sprintf(control.PathNodeSync, r.Node.Name), r, &out)
	return out, err
}

// GatewaySync registers a gateway, confirms routes, and waits up to about 5 s for others than those.
func (c *Client) GatewaySync(ctx context.Context, r control.GatewayReport) (control.RouteTable, error) {
	var out control.RouteTable
	err := c.Do(ctx, http.MethodPost, fmt.Sprintf(control.PathGatewaySync, r.Gateway.Name), r, &out)
	return out, err
}

// Decide asks for the one compare-and-swap of a move.
func (c *Client) Decide(ctx context.Context, id string, r control.DecideRequest) (control.DecideReply, error) {
	var out control.DecideReply
	err := c.Do(ctx, http.MethodPost, fmt.Sprintf(control.PathDecide, id), r, &out)
	return out, err
}

// Events calls f with each event after a revision; with follow until ctx ends, else until the kept ones are through.
func (c *Client) Events(ctx context.Context, from uint64, follow bool, f func(control.Event) error) error {
	resp, err := c.send(ctx, http.MethodGet, fmt.Sprintf("/v1/events?from=%d&follow=%t", from, follow), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(make([]byte, 64<<10), control.MaxValue+1024)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var e control.Event
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			return fmt.Errorf("event stream: %w", err)
		}
		if err := f(e); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return c.lost(ctx, err)
	}
	return nil
}
