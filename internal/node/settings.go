package node

import (
	"gantline/internal/control"
	"gantline/internal/wire"
)

// settings are those of the group's record: what `group create` and `group set` have asked for.
func (g *group) settings() control.Settings {
	if rec := g.n.state.view().Groups[g.name]; rec != nil {
		return rec.Spec.Group.Settings
	}
	return control.DefaultSettings()
}

// applySettings puts the recorded settings in force in the running group; under Node.config. Each part compares what
// it does with what it should do, so a repetition changes nothing, and a restart begins with the same settings.
func (g *group) applySettings() error {
	s := g.settings()
	g.limit.Set(s.Limit)
	g.compress.Store(uint32(wire.MethodOf(s.Compress)))
	return g.applySync(s)
}
