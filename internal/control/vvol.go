package control

import (
	"maps"
	"slices"
)

// VolumeAt is the volume that a gateway leads the virtual volume to.
func (v *Vvol) VolumeAt(gateway string) string {
	if at := v.At[gateway]; at != "" {
		return at
	}
	return v.Volume
}

// Volumes are all that it is led to by some gateway, the one that counts for most of them first.
func (v *Vvol) Volumes() []string {
	out := []string{v.Volume}
	for _, g := range slices.Sorted(maps.Keys(v.At)) {
		if !slices.Contains(out, v.At[g]) {
			out = append(out, v.At[g])
		}
	}
	return out
}

// Lead leads it to a volume at these gateways, or, if there are none, at all of them. It says whether that changes anything.
func (v *Vvol) Lead(volume string, gateways ...string) bool {
	if len(gateways) == 0 {
		changed := v.Volume != volume || len(v.At) > 0
		v.Volume, v.At = volume, nil
		return changed
	}
	changed := false
	for _, g := range gateways {
		if v.VolumeAt(g) == volume {
			continue
		}
		changed = true
		v.At = maps.Clone(v.At)
		if volume == v.Volume {
			delete(v.At, g)
			continue
		}
		if v.At == nil {
			v.At = map[string]string{}
		}
		v.At[g] = volume
	}
	return changed
}

// Relead leads it to another volume wherever it is led to from, and says whether it was anywhere.
func (v *Vvol) Relead(from, to string) bool {
	if !slices.Contains(v.Volumes(), from) {
		return false
	}
	if v.Volume == from {
		v.Volume = to
	}
	at := map[string]string{}
	for g, volume := range v.At {
		if volume == from {
			volume = to
		}
		if volume != v.Volume {
			at[g] = volume
		}
	}
	if v.At = at; len(at) == 0 {
		v.At = nil
	}
	return true
}
