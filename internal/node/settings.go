package node

import (
	"time"

	"gantline/internal/control"
	"gantline/internal/sender"
	"gantline/internal/volume"
	"gantline/internal/wire"
)

// settings are those of the group's record: what `group create` and `group set` have asked for.
func (g *group) settings() control.Settings {
	if rec := g.n.state.group(g.name); rec != nil {
		s := rec.Spec.Group.Settings
		if rec.Promoted != nil || rec.Superseded != nil { // nobody is copied to, and nobody waits for it
			s.Mode, s.Transfer = control.ModeAsync, control.TransferPush
		}
		return s
	}
	return control.DefaultSettings()
}

// applySettings puts the recorded settings in force in the running group; under Node.config. Each part compares what
// it does with what it should do, so a repetition changes nothing, and a restart begins with the same settings.
func (g *group) applySettings() error {
	settings := g.settings()
	g.limit.Set(settings.Limit)
	g.compress.Store(uint32(wire.MethodOf(settings.Compress)))
	g.mu.Lock()
	g.expect = expectOf(&settings)
	sub, snd, pulls := g.sub, g.snd, g.pulls
	g.mu.Unlock()
	if sub != nil {
		sub.SetRetain(retainOf(&settings))
	}
	if snd != nil {
		snd.SetGather(gatherOf(&settings))
		snd.SetPull(settings.Transfer == control.TransferPull)
	}
	pulls.poke()
	if settings.Mode != control.ModePeriodic {
		g.dropInterval()
	}
	defer g.pokeCopy() // mode and interval: the copy loop reads them anew
	return g.applySync(settings)
}

func retainOf(s *control.Settings) volume.Retain {
	if s.Retain == control.RetainTransferred {
		return volume.RetainDurable
	}
	return volume.RetainApplied
}

// gatherOf: hosts of a synchronous group wait for what is sent, and an interval's step is sent whole.
func gatherOf(s *control.Settings) sender.Gather {
	if s.Mode == control.ModeSync || s.Mode == control.ModePeriodic {
		return sender.Gather{}
	}
	return sender.Gather{Every: s.SendEvery(), Bytes: s.SendBytes}
}

// hurryFilled is the part of the journal, or queue, in use from which on nothing waits for an interval or a quantity.
const hurryFilled = 0.5

// hurries says that what waits must be sent at once: the journal fills up, a resync's step or a verify is under way, or
// a volume is copied for the first time, of which no more is read than is acknowledged.
func (g *group) hurries() bool {
	g.mu.Lock()
	log, sub, verifying := g.log, g.sub, g.verify != nil
	g.mu.Unlock()
	if sub == nil {
		return false
	}
	if verifying || g.copying.Load() || sub.State() == volume.SubResyncing {
		return true
	}
	if log == nil {
		return false
	}
	used, capacity := log.Space()
	return float64(used) >= hurryFilled*float64(capacity)
}

// sendWaitLimit is how long a suspension waits for records that only an interval or a quantity holds back.
const sendWaitLimit = 2 * time.Second

// sendWaiting sends what waits for an interval or a quantity: once the group is suspended it could be told only by whole
// marked blocks. What does not get through in time is marked.
func (g *group) sendWaiting() {
	settings := g.settings()
	snd := g.sender()
	if snd == nil || (gatherOf(&settings) == sender.Gather{}) || g.sub.State() != volume.SubStreaming {
		return
	}
	upTo := g.vg.Appended()
	snd.Hurry(upTo)
	for end := time.Now().Add(sendWaitLimit); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		_, durable, applied := g.sub.Cursor()
		has := applied // what is marked is all behind what the log has been freed of
		if settings.Retain == control.RetainTransferred {
			has = durable
		}
		if has >= upTo || snd.Status().State != sender.StateStreaming {
			return
		}
	}
}
