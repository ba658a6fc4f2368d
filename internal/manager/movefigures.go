package manager

import (
	"context"

	"gantline/internal/control"
)

// moveFigures is what earlier moves let expect of one. Nil: not known.
type moveFigures struct {
	rate    *float64 // of the copy without a limit, bytes a second
	pauseMS *float64
}

// leastMeasured is how much a move must have copied to say anything on the rate, bytes.
const leastMeasured = 1 << 20

// figures looks at the latest moves that had a node in common with this one; those of the group itself count first for the
// pause.
func (m *Manager) figures(ctx context.Context, mg *control.Migration) (moveFigures, error) {
	all, err := loadAll[control.Migration](ctx, m, control.KindMigration)
	if err != nil {
		return moveFigures{}, err
	}
	var out moveFigures
	var rated, paused, ownPaused control.Step
	for _, o := range all {
		if o.V.Source != mg.Source && o.V.Target != mg.Target && o.V.Target != mg.Source && o.V.Group != mg.Group {
			continue
		}
		run, fill := stepOf(&o.V, control.StepRun), stepOf(&o.V, control.StepFill)
		if r := copyRate(&o.V, run, fill); r != nil && fill.At.After(rated.At) {
			out.rate, rated = r, fill
		}
		own := o.V.Group == mg.Group
		if o.V.Seen.PauseMS == nil || !own && (!ownPaused.At.IsZero() || !run.At.After(paused.At)) || own && !run.At.After(ownPaused.At) {
			continue
		}
		if out.pauseMS, paused = o.V.Seen.PauseMS, run; own {
			ownPaused = run
		}
	}
	return out, nil
}

func stepOf(mg *control.Migration, step string) control.Step {
	for _, s := range mg.Steps {
		if s.Step == step {
			return s
		}
	}
	return control.Step{}
}

// copyRate is nil for a move that says nothing on it: one with a limit, one that has not been filled or had hardly anything.
func copyRate(mg *control.Migration, run, fill control.Step) *float64 {
	s := &mg.Seen
	if mg.Limit > 0 || run.At.IsZero() || !fill.At.After(run.At) || s.Background == nil || s.OnDemand == nil {
		return nil
	}
	if bytes := *s.Background + *s.OnDemand; bytes >= leastMeasured {
		return ptr(float64(bytes) / fill.At.Sub(run.At).Seconds())
	}
	return nil
}

// seconds is how long so many bytes will take.
func (f moveFigures) seconds(limit, data int64) *float64 {
	rate := f.rate
	if limit > 0 && (rate == nil || *rate > float64(limit)) {
		rate = ptr(float64(limit))
	}
	switch {
	case data == 0:
		return ptr(0.0)
	case rate == nil:
		return nil
	}
	return ptr(float64(data) / *rate)
}
