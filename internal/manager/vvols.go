package manager

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	"gantline/internal/control"
)

const maxHosts = 256 // of one virtual volume

// In-flight policies of a switch: route.Policy.
const (
	inFlightFinish = "finish"
	inFlightHold   = "hold"
	inFlightError  = "error"
)

// inFlight is the policy that was asked for.
func inFlight(policy string) (string, error) {
	switch policy {
	case "":
		return inFlightFinish, nil
	case inFlightFinish, inFlightHold, inFlightError:
		return policy, nil
	}
	return "", control.Errorf(control.KindUsage, "--in-flight %q: it is finish, hold or error", policy)
}

func hostsOf(names []string) ([]control.Host, error) {
	hosts := []control.Host{}
	for _, h := range names {
		h, err := cleanHost(h)
		if err != nil {
			return nil, err
		}
		hosts = append(hosts, control.Host{Name: h})
	}
	slices.SortFunc(hosts, compareHosts)
	return slices.Compact(hosts), nil
}

func compareHosts(a, b control.Host) int {
	if a.Name < b.Name {
		return -1
	}
	return map[bool]int{true: 1, false: 0}[a.Name > b.Name]
}

// cleanHost writes an address in its one form, so that it is found again.
func cleanHost(h string) (string, error) {
	if err := control.CheckHost(h); err != nil {
		return "", err
	}
	if ip, err := netip.ParseAddr(h); err == nil {
		return ip.Unmap().String(), nil
	}
	return h, nil
}

func (m *Manager) vvolCreate(ctx context.Context, in control.VvolRequest) error {
	if err := control.CheckName("vvol", in.Name); err != nil {
		return err
	}
	if _, _, err := control.SplitOwned("volume", in.Volume); err != nil {
		return err
	}
	hosts, err := hostsOf(in.Hosts)
	if err != nil {
		return err
	}
	if len(hosts) > maxHosts {
		return control.Errorf(control.KindUsage, "vvol %s: at most %d hosts", in.Name, maxHosts)
	}
	rev, err := attempt(ctx, func() (uint64, error) {
		old, exists, err := find[control.Vvol](ctx, m, control.KindVvol, in.Name)
		if err != nil {
			return 0, err
		}
		if exists {
			if old.V.Volume != in.Volume || !slices.Equal(old.V.Hosts, hosts) {
				return 0, control.Errorf(control.KindRefused,
					"vvol %s exists and leads to %s; switch, allow or deny change it", in.Name, old.V.Volume)
			}
			return old.Rev, nil
		}
		if err := m.room(ctx, control.KindVvol); err != nil {
			return 0, err
		}
		vol, err := load[control.Volume](ctx, m, control.KindVolume, in.Volume)
		if err != nil {
			return 0, err
		}
		if vol.V.Group != "" {
			if err := m.quiet(ctx, vol.V.Group, "vvol "+in.Name); err != nil {
				return 0, err
			}
		}
		v := control.Vvol{Name: in.Name, Volume: in.Volume, Size: vol.V.Size, Hosts: hosts, InFlight: inFlightFinish}
		return m.commit(ctx, m.change().hold(vol.Key, vol.Rev).put(old.Key, 0, v).
			event("vvol/"+in.Name, "created", "command", "vvol %s leads to %s", in.Name, in.Volume))
	})
	if err == nil {
		m.inForce(ctx, rev, "vvol/"+in.Name)
	}
	return err
}

// quiet refuses while a move has the group's routes in hand.
func (m *Manager) quiet(ctx context.Context, group, object string) error {
	mg, running, err := m.latestMove(ctx, group)
	if err != nil {
		return err
	}
	if running && mg.V.Active() {
		return control.Errorf(control.KindRefused, "%s: migration %s has %s in hand (phase %q); wait until it is filled",
			object, mg.V.ID, mg.V.What(), mg.V.Phase)
	}
	return nil
}

// quietVolume is quiet for the group that a volume is in, if it is in one.
func (m *Manager) quietVolume(ctx context.Context, volume, object string) error {
	v, exists, err := find[control.Volume](ctx, m, control.KindVolume, volume)
	if err != nil || !exists || v.V.Group == "" {
		return err
	}
	return m.quiet(ctx, v.V.Group, object)
}

// editVvol changes one virtual volume and waits until the gateways have it. edit says false if nothing changes.
func (m *Manager) editVvol(ctx context.Context, name, kind, message string,
	edit func(c *change, v *control.Vvol) (bool, error)) error {
	rev, err := attempt(ctx, func() (uint64, error) {
		v, err := load[control.Vvol](ctx, m, control.KindVvol, name)
		if err != nil {
			return 0, err
		}
		c := m.change()
		changed, err := edit(c, &v.V)
		if err != nil || !changed {
			return v.Rev, err
		}
		return m.commit(ctx, c.put(v.Key, v.Rev, v.V).event("vvol/"+name, kind, "command", "vvol %s: %s", name, message))
	})
	if err == nil {
		m.inForce(ctx, rev, "vvol/"+name)
	}
	return err
}

func (m *Manager) vvolAllow(ctx context.Context, name string, in control.HostRequest) error {
	host, err := cleanHost(in.Host)
	if err != nil {
		return err
	}
	return m.editVvol(ctx, name, "allowed", "host "+host+" allowed", func(_ *change, v *control.Vvol) (bool, error) {
		want := control.Host{Name: host, ReadOnly: in.ReadOnly}
		i := slices.IndexFunc(v.Hosts, func(h control.Host) bool { return h.Name == host })
		switch {
		case i >= 0 && v.Hosts[i] == want:
			return false, nil
		case i >= 0:
			v.Hosts[i] = want
		case len(v.Hosts) >= maxHosts:
			return false, control.Errorf(control.KindRefused, "vvol %s has %d hosts, the most allowed", name, maxHosts)
		default:
			v.Hosts = append(v.Hosts, want)
			slices.SortFunc(v.Hosts, compareHosts)
		}
		return true, nil
	})
}

func (m *Manager) vvolDeny(ctx context.Context, name string, in control.HostRequest) error {
	host, err := cleanHost(in.Host)
	if err != nil {
		return err
	}
	return m.editVvol(ctx, name, "denied", "host "+host+" denied", func(_ *change, v *control.Vvol) (bool, error) {
		n := len(v.Hosts)
		v.Hosts = slices.DeleteFunc(v.Hosts, func(h control.Host) bool { return h.Name == host })
		if len(v.Hosts) == 0 && n > 0 {
			// An empty list would open it to everybody on this machine: the opposite of what was asked.
			return false, control.Errorf(control.KindRefused, "vvol %s: %s is its only host, and a list without hosts "+
				"lets everybody on loopback in; allow another first, or delete the vvol", name, host)
		}
		return len(v.Hosts) != n, nil
	})
}

func (m *Manager) vvolSwitch(ctx context.Context, name string, in control.SwitchRequest) error {
	policy, err := inFlight(in.InFlight)
	if err != nil {
		return err
	}
	for _, g := range in.Gateways {
		if _, err := load[control.Gateway](ctx, m, control.KindGateway, g); err != nil {
			return err
		}
	}
	if _, _, err := control.SplitOwned("volume", in.Volume); err != nil {
		return err
	}
	message := "now leads to " + in.Volume
	if len(in.Gateways) > 0 {
		message += " at gateway " + strings.Join(in.Gateways, ", ")
	}
	return m.editVvol(ctx, name, "switched", message, func(c *change, v *control.Vvol) (bool, error) {
		before := v.Volumes()
		if !v.Lead(in.Volume, in.Gateways...) {
			return false, nil
		}
		vol, err := load[control.Volume](ctx, m, control.KindVolume, in.Volume)
		if err != nil {
			return false, err
		}
		if vol.V.Size != v.Size {
			return false, control.Errorf(control.KindRefused, "vvol %s has %d bytes, volume %s has %d: hosts have the size "+
				"from the opening on, so both must be equal", name, v.Size, in.Volume, vol.V.Size)
		}
		for _, volume := range append(before, in.Volume) {
			if err := m.quietVolume(ctx, volume, "vvol "+name); err != nil {
				return false, err
			}
		}
		c.hold(vol.Key, vol.Rev)
		v.InFlight = policy
		return true, nil
	})
}

func (m *Manager) vvolDelete(ctx context.Context, name string) error {
	rev, err := attempt(ctx, func() (uint64, error) { return m.deleteVvol(ctx, name) })
	if err == nil {
		m.inForce(ctx, rev, "vvol/"+name)
	}
	return err
}

// deleteVvol does it, if the virtual volume is as it was looked at: a switch or a move meanwhile has it looked at again.
func (m *Manager) deleteVvol(ctx context.Context, name string) (uint64, error) {
	v, err := load[control.Vvol](ctx, m, control.KindVvol, name)
	if err != nil {
		return 0, err
	}
	c := m.change().del(v.Key, v.Rev)
	for _, volume := range v.V.Volumes() {
		vol, exists, err := find[control.Volume](ctx, m, control.KindVolume, volume)
		if err != nil {
			return 0, err
		}
		if !exists || vol.V.Group == "" {
			continue
		}
		g, err := load[control.Group](ctx, m, control.KindGroup, vol.V.Group)
		if err != nil {
			return 0, err
		}
		if err := m.quiet(ctx, vol.V.Group, "vvol "+name); err != nil {
			return 0, err
		}
		c.hold(g.Key, g.Rev) // a move that begins counts itself there
	}
	gateways, err := loadAll[control.Gateway](ctx, m, control.KindGateway)
	if err != nil {
		return 0, err
	}
	for _, g := range gateways {
		_, vvols, _ := m.presence.gateway(g.V.Name)
		for _, gv := range vvols {
			if gv.Name == name && gv.Sessions > 0 {
				return 0, control.Errorf(control.KindRefused, "vvol %s is in use: gateway %s has %d connections to it open; "+
					"disconnect the hosts first", name, g.V.Name, gv.Sessions)
			}
		}
	}
	return m.commit(ctx, c.event("vvol/"+name, "deleted", "command", "vvol %s deleted", name))
}
