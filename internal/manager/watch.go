package manager

import (
	"context"
	"sync"
	"time"

	"gantline/internal/control"
)

const noticeEvery = time.Second

// noticed is how far a node's own events have been taken over; stored with them, so that none is told twice.
type noticed struct {
	Instance string `json:"instance"`
	Number   uint64 `json:"number"`
}

// kindNoticed is the manager's own; users never see it.
const kindNoticed = "noticed"

// notice takes over what nodes notice by themselves: changes of a group's state, its link, its lag.
func (m *Manager) notice(ctx context.Context) error {
	tick := time.NewTicker(noticeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		nodes, err := loadAll[control.Node](ctx, m, control.KindNode)
		if err != nil {
			m.log.Warn("events of nodes could not be fetched", "error", err)
			continue
		}
		var wg sync.WaitGroup
		for _, n := range nodes {
			if !m.presence.nodeUp(n.V.Name) {
				continue
			}
			wg.Go(func() {
				if err := m.noticeNode(ctx, n.V.Name); err != nil && ctx.Err() == nil {
					m.log.Debug("events of a node were not fetched", "node", n.V.Name, "error", err)
				}
			})
		}
		wg.Wait()
	}
}

func (m *Manager) noticeNode(ctx context.Context, node string) error {
	have, _, err := find[noticed](ctx, m, kindNoticed, node)
	if err != nil {
		return err
	}
	var got control.NodeEvents
	if err := m.nodes.call(ctx, node, control.CallNodeEvents, control.EventsAfter{After: have.V.Number}, &got, liveTimeout); err != nil {
		return err
	}
	if got.Instance != have.V.Instance && have.V.Number != 0 { // another run: its numbers began anew
		if err := m.nodes.call(ctx, node, control.CallNodeEvents, control.EventsAfter{}, &got, liveTimeout); err != nil {
			return err
		}
		have.V.Number = 0
	}
	c := m.change()
	for _, e := range got.Events {
		if e.Number <= have.V.Number {
			continue
		}
		have.V.Number = e.Number
		c.txn.Events = append(c.txn.Events, control.Event{At: e.At, Object: e.Object, Kind: e.Kind, Cause: e.Cause, Message: e.Message})
	}
	if len(c.txn.Events) == 0 {
		return nil
	}
	have.V.Instance = got.Instance
	_, err = m.commit(ctx, c.put(have.Key, have.Rev, have.V))
	return err
}
