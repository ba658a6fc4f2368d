package node

import (
	"testing"
	"time"

	"gantline/internal/control"
	"gantline/internal/proof"
)

// A volume that is not copied anywhere moves in a group of its own without a secondary, made for the move and ended behind it, twice,
// under load, with either way of copying: before, between and behind the moves it is in no group.
func TestMoveLone(t *testing.T) {
	t.Parallel()
	for _, strategy := range []string{control.StrategySwitchFirst, control.StrategyCopyFirst} {
		t.Run(strategy, func(t *testing.T) {
			r := newRig(t, "a", "b", "d")
			const size = 8 << 20
			r.call("a", control.CallVolumeCreate, control.VolumeCreate{Name: "v1", Size: size}, nil)
			l := proof.New(r.disks("a", 1), proof.Options{Seed: 5, Depth: 4, ReadPercent: 20, FlushEvery: 30, Rate: 800})
			runFor(t, l, 300*time.Millisecond)
			r.store.set(false, "")
			for i, to := range []string{"b", "d"} {
				from := []string{"a", "b"}[i]
				stop := keepRunning(t, l)
				s := control.DefaultSettings()
				s.Log = control.LogQueue
				name := []string{"g", "h"}[i]
				g := control.Group{Name: name, Settings: s, Epoch: 1, Primary: from, NextNumber: 2, Revision: 1,
					Pairs: []control.Pair{{Number: 1, Primary: from + "/v1", Size: size}}}
				r.call(from, control.CallGroupConfigure, control.GroupSpec{Group: g, Role: control.RolePrimary, Address: r.addresses()}, nil)
				sp := control.MigrationSpec{ID: name + "-1", Group: g, Source: from, Target: to, Address: r.addresses(), Strategy: strategy,
					Volumes: []control.MovedVolume{{Number: 1, Source: from + "/v1", Target: to + "/v1", Size: size}}}
				r.call(to, control.CallVolumeCreate, control.VolumeCreate{Name: "v1", Size: size}, nil)
				id := control.MigrationID{ID: sp.ID}
				status := func(node string) (st control.MigrationStatus) {
					t.Helper()
					r.call(node, control.CallMigrateStatus, id, &st)
					return st
				}
				for _, n := range []string{from, to} {
					r.call(n, control.CallMigrateRegister, sp, nil)
				}
				if sp.CopyFirst() {
					r.call(to, control.CallMigrateCopy, id, nil)
					r.waitFor("copied", func() bool { return status(to).Copied })
				}
				r.waitFor("ready", func() bool { return status(from).Ready })
				r.call(to, control.CallMigrateThrough, id, nil)
				stop()
				l.SetDisks(r.disks(to, 1))
				stop = keepRunning(t, l)
				r.call(to, control.CallMigrateRun, id, nil)
				r.waitFor("serving", func() bool { return control.After(status(to).Phase, control.PhaseMigrating) })
				if i == 0 {
					stop()
					r.stop(to)
					r.start(to)
					l.SetDisks(r.disks(to, 1))
					stop = keepRunning(t, l)
				}
				r.waitFor("filled", func() bool { return status(to).Phase == control.PhaseFilled })
				for _, n := range []string{to, from} {
					r.call(n, control.CallMigrateDeregister, id, nil)
				}
				r.call(to, control.CallGroupDelete, control.NameOnly{Name: name}, nil)
				time.Sleep(100 * time.Millisecond)
				stop()
				var st control.NodeStatus
				r.call(to, control.CallNodeStatus, struct{}{}, &st)
				if v := st.Volumes[0]; v.Role != "lone" || v.Mode != "normal" || len(st.Groups) != 0 {
					t.Fatalf("at %s: %+v", to, st)
				}
				r.check(l, to, 1, true)
			}
			r.stop("d")
			r.start("d")
			r.check(l, "d", 1, true)
		})
	}
}
