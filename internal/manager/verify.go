package manager

import (
	"context"

	"gantline/internal/control"
)

// groupVerify has the primary begin to compare both sides, or finds that it does. The primary keeps the result.
func (m *Manager) groupVerify(ctx context.Context, name string, in control.VerifyRequest) (control.VerifyView, error) {
	unlock, err := m.locks.lock(ctx, "group/"+name)
	if err != nil {
		return control.VerifyView{}, err
	}
	defer unlock()
	if err := m.quiet(ctx, name, "group "+name); err != nil {
		return control.VerifyView{}, err
	}
	g, err := load[control.Group](ctx, m, control.KindGroup, name)
	if err != nil {
		return control.VerifyView{}, err
	}
	if len(g.V.Pairs) == 0 {
		return control.VerifyView{}, control.Errorf(control.KindRefused, "group %s has no pairs", name)
	}
	var st control.VerifyStatus
	err = m.do(ctx, g.V.Primary, control.CallGroupVerify, name, control.GroupVerify{Name: name, Repair: in.Repair}, &st, callTimeout)
	return verifyView(name, &st), err
}

func (m *Manager) verifyView(ctx context.Context, name string) (control.VerifyView, error) {
	g, err := load[control.Group](ctx, m, control.KindGroup, name)
	if err != nil {
		return control.VerifyView{}, err
	}
	var st control.VerifyStatus
	err = m.nodes.call(ctx, g.V.Primary, control.CallGroupVerified, control.NameOnly{Name: name}, &st, callTimeout)
	return verifyView(name, &st), err
}

func verifyView(group string, st *control.VerifyStatus) control.VerifyView {
	v := control.VerifyView{ID: st.ID, Group: group, State: st.State, TotalBytes: st.TotalBytes, ComparedBytes: st.ComparedBytes,
		Different: st.Different, RepairedBytes: st.RepairedBytes, Error: st.Error}
	if st.Cut != 0 {
		v.Cut = &st.Cut
	}
	if v.Different == nil {
		v.Different = []control.VerifyExtent{}
	}
	return v
}
