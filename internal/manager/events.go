package manager

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/sse"

	"gantline/internal/control"
)

const (
	eventsBeat = 15 * time.Second // a comment, so that a dead reader is noticed
)

type eventsIn struct {
	From   uint64 `query:"from" doc:"only events of later revisions"`
	Follow bool   `query:"follow" default:"true" doc:"go on with what happens; false: end after what is kept"`
}

func (m *Manager) registerEvents(api huma.API) {
	op := huma.Operation{OperationID: "events", Method: http.MethodGet, Path: "/v1/events", Summary: "What has happened, as it happens",
		Tags: []string{"events"}}
	sse.Register(api, op, map[string]any{"message": control.Event{}}, func(ctx context.Context, in *eventsIn, send sse.Sender) {
		if err := m.sendEvents(ctx, in, send); err != nil && ctx.Err() == nil {
			m.log.Debug("event stream ended", "error", err)
		}
	})
}

// sendEvents sends what is kept, then what the store's watch brings, without gap or repeat between the two.
func (m *Manager) sendEvents(ctx context.Context, in *eventsIn, send sse.Sender) error {
	at := in.From
	for {
		entries, revision, err := m.store.List(ctx, control.KindEvent+"/")
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.Revision > at {
				if err := sendEvent(send, e.Value); err != nil {
					return err
				}
			}
		}
		at = max(at, revision)
		if !in.Follow {
			return nil
		}
		changes, err := m.store.Watch(ctx, at)
		if errors.Is(err, control.ErrCompacted) {
			continue
		}
		if err != nil {
			return err
		}
		if at, err = follow(ctx, changes, at, send); err != nil || ctx.Err() != nil {
			return err
		}
	}
}

func follow(ctx context.Context, changes <-chan control.Change, at uint64, send sse.Sender) (uint64, error) {
	beat := time.NewTicker(eventsBeat)
	defer beat.Stop()
	for {
		select {
		case <-ctx.Done():
			return at, nil
		case <-beat.C:
			if err := send.Comment("beat"); err != nil {
				return at, err
			}
		case c, ok := <-changes:
			if !ok { // fell behind: list again from where we are
				return at, nil
			}
			at = c.Revision
			if !c.Deleted && strings.HasPrefix(c.Key, control.KindEvent+"/") {
				if err := sendEvent(send, c.Value); err != nil {
					return at, err
				}
			}
		}
	}
}

func sendEvent(send sse.Sender, value []byte) error {
	var e control.Event
	if err := json.Unmarshal(value, &e); err != nil {
		return err
	}
	return send(sse.Message{ID: int(e.Revision), Data: e})
}
