package control

import "time"

// Calls of a promotion: a secondary becomes the primary while the old one is gone, or is given up.
const (
	CallGroupPromote    = "group.promote"    // GroupPromote → PromoteStatus ; to the secondary
	CallGroupReign      = "group.reign"      // NameOnly → Reign ; a primary that starts asks its secondary
	CallGroupSuperseded = "group.superseded" // Reign → SupersededReply ; a promoted node tells the old primary
)

// RoleSuperseded is that of an old primary which knows that its secondary has been promoted: it refuses hosts.
const RoleSuperseded = "superseded"

// GroupPromote asks a secondary to become the primary. DryRun: nothing changes, the plan says what would.
type GroupPromote struct {
	Name   string `json:"name"`
	Force  bool   `json:"force"`
	DryRun bool   `json:"dry_run,omitempty"`
}

// PromoteRequest is GroupPromote as users ask for it, by the group's address.
type PromoteRequest struct {
	Force bool `json:"force,omitempty"`
}

// PromoteView is what `group promote` answers. LostWrites are those that the old primary has numbered behind the cut; null:
// it did not say.
type PromoteView struct {
	Group      string  `json:"group"`
	Epoch      uint64  `json:"epoch"`
	Cut        uint64  `json:"cut"`
	LostWrites *uint64 `json:"lost_writes"`
}

// PromoteStatus is the answer of CallGroupPromote; Plan only for a dry run, Done else.
type PromoteStatus struct {
	PromoteView
	Plan *PlanView  `json:"plan,omitempty"`
	Done *Promotion `json:"done,omitempty"`
}

// Promotion is what a node has done that was promoted. Cut is the last record of the reign before, From that one's node. It stays with the
// group when that moves on: Node is who was promoted, empty if that is who has told of it.
type Promotion struct {
	Node       string    `json:"node,omitempty"`
	Epoch      uint64    `json:"epoch"`
	Cut        uint64    `json:"cut"`
	From       string    `json:"from"`
	At         time.Time `json:"at"`
	LostWrites *uint64   `json:"lost_writes"`
}

// By is who was promoted, of a group that node serves.
func (p *Promotion) By(node string) string {
	if p.Node != "" {
		return p.Node
	}
	return node
}

// Kept is the promotion, of a group that node serves, for whoever serves it later; nil of nil.
func (p *Promotion) Kept(node string) *Promotion {
	if p == nil {
		return nil
	}
	c := *p
	c.Node = p.By(node)
	return &c
}

// View is the promotion as the command answers it.
func (p *Promotion) View(group string) PromoteView {
	return PromoteView{Group: group, Epoch: p.Epoch, Cut: p.Cut, LostWrites: p.LostWrites}
}

// Reign says who reigns in a group since when: Node in Epoch, behind record Cut. Node is empty if the one who was asked has
// not been promoted.
type Reign struct {
	Name  string `json:"name"`
	Node  string `json:"node"`
	Epoch uint64 `json:"epoch"`
	Cut   uint64 `json:"cut"`
}

// SupersededReply: the old primary refuses hosts now. Appended is the last record that it has numbered.
type SupersededReply struct {
	Appended uint64 `json:"appended"`
}

// Steps of a promotion, for kill points.
const (
	StepPromoteMaps   = "promote-maps"   // the changed maps of the old primary
	StepPromoteCut    = "promote-cut"    // the log ends at the last consistent record
	StepPromoteOpen   = "promote-open"   // the row of the new epoch: the promotion stands
	StepPromoteApply  = "promote-apply"  // all that is stored is applied
	StepPromoteServe  = "promote-serve"  // the group numbers records
	StepPromoteRecord = "promote-record" // role, epoch and pairs
	StepSupersede     = "supersede"      // at the old primary: its role
)

// PromoteSteps are all of them, in order.
func PromoteSteps() []string {
	return []string{StepPromoteMaps, StepPromoteCut, StepPromoteOpen, StepPromoteApply, StepPromoteServe, StepPromoteRecord}
}

// CopiesTo is the node that the group is copied to; "": none, for it has no secondary, or one that was superseded.
func (g *Group) CopiesTo() string {
	if g.Promotion != nil {
		return ""
	}
	return g.Secondary
}

// Promoted turns the group around: its secondary was promoted. The log of a secondary is always a journal.
func (g *Group) Promoted(p *Promotion) {
	g.Primary, g.Secondary = g.Secondary, g.Primary
	g.PrimaryJournal, g.SecondaryJournal = g.SecondaryJournal, g.PrimaryJournal
	g.SecondaryJournalSize = 0
	g.Log, g.Epoch, g.Promotion = LogJournal, p.Epoch, p
	pairs := make([]Pair, 0, len(g.Pairs))
	for _, pair := range g.Pairs {
		pair.Primary, pair.Secondary = pair.Secondary, pair.Primary
		pairs = append(pairs, pair)
	}
	g.Pairs = pairs
}
