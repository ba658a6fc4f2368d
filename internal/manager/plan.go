package manager

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"sync"

	"gantline/internal/control"
)

// plan collects what an operation would do. With one in its context an operation reads and checks as always, but calls
// no node to change something and commits nothing.
type plan struct {
	mu   sync.Mutex
	view control.PlanView
	free int64 // bytes at the target of a move, 0: not known
}

type planKey struct{}

func planOf(ctx context.Context) *plan {
	p, _ := ctx.Value(planKey{}).(*plan)
	return p
}

func (p *plan) add(lines ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.view.Plan = append(p.view.Plan, lines...)
}

// refuse notes a condition that would refuse the operation.
func (p *plan) refuse(why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.view.Refusals = append(p.view.Refusals, why)
}

func (p *plan) refusals() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.view.Refusals)
}

// weigh has an operation go on in a dry run behind a refusal, which is noted, so that all of them are told at once.
func weigh(ctx context.Context, err error) error {
	if p := planOf(ctx); p != nil && control.KindOf(err) == control.KindRefused {
		p.refuse(err.Error())
		return nil
	}
	return err
}

// set replaces what was collected: for operations that know more of their plan than their steps.
func (p *plan) set(v control.PlanView) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.view = v
}

// dryRun answers any changing request that has ?dry_run=true with its plan. The operation runs under a plan; its
// refusal becomes an entry of the plan, its other errors stay errors.
func dryRun(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet || r.URL.Query().Get("dry_run") != "true" {
			next.ServeHTTP(w, r)
			return
		}
		p := &plan{}
		rec := &recorder{header: http.Header{}, status: http.StatusOK}
		next.ServeHTTP(rec, r.WithContext(context.WithValue(r.Context(), planKey{}, p)))
		p.mu.Lock()
		defer p.mu.Unlock()
		if rec.status >= 400 {
			var e control.Error
			if err := json.Unmarshal(rec.body.Bytes(), &e); err != nil {
				e = control.Error{Kind: control.KindFailed, Message: rec.body.String()}
			}
			switch {
			case e.Kind == control.KindRefused:
				p.view.Refusals = append(p.view.Refusals, e.Message)
			case e.Kind == control.KindNotFound && len(p.view.Plan) > 0:
				// The object is not there to be shown, because nothing was made.
			default:
				writeError(w, &e)
				return
			}
		}
		if p.view.Plan == nil {
			p.view.Plan = []string{}
		}
		if p.view.Refusals == nil {
			p.view.Refusals = []string{}
		}
		writeJSON(w, http.StatusOK, p.view)
	})
}

// recorder keeps an answer instead of sending it.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(status int)      { r.status = status }
func (r *recorder) Write(p []byte) (int, error) { return r.body.Write(p) }
