// Package control is the vocabulary of the control state: the objects that the manager stores, the transitions they may
// make, the Store that keeps them, and the calls between manager and nodes. It imports nothing of ours.
//
// Facts have one owner. The manager owns names and wishes (which volumes, which groups, which move). A node owns what
// is on its disks: volumes, logs, epochs it has opened, refused or sealed. Where the two differ on an epoch, the node's
// own durable record wins and the store is corrected.
package control

import "time"

// Object kinds, the first part of every key in the Store.
const (
	KindNode      = "nodes"
	KindGateway   = "gateways"
	KindVolume    = "volumes"  // key NODE/NAME
	KindJournal   = "journals" // key NODE/NAME
	KindVvol      = "vvols"
	KindGroup     = "groups"
	KindLink      = "links"      // key FROM:TO
	KindMigration = "migrations" // key ID = GROUP-N
	KindOperation = "operations"
	KindForgotten = "forgotten" // key: a node's installation
	KindEvent     = "events"
)

// Node is a registered storage node. Install is the random identity of its data directory, Instance that of one run.
type Node struct {
	Name     string    `json:"name"`
	Site     string    `json:"site"`
	Install  string    `json:"install"`
	Instance string    `json:"instance"`
	Address  string    `json:"address"` // for frames: calls, io, streams
	Peer     string    `json:"peer"`    // for frames from other nodes; empty: Address
	NBD      []string  `json:"nbd"`     // its own exports: host:port or unix:PATH
	Since    time.Time `json:"since"`
}

// PeerAddress is where other nodes reach the node.
func (n *Node) PeerAddress() string {
	if n.Peer != "" {
		return n.Peer
	}
	return n.Address
}

// Gateway is a registered gateway or agent.
type Gateway struct {
	Name     string    `json:"name"`
	Site     string    `json:"site"`
	Install  string    `json:"install"`
	Instance string    `json:"instance"`
	NBD      []string  `json:"nbd"`
	Since    time.Time `json:"since"`
}

// Volume is a block device of a node. Group is empty for a lone volume.
type Volume struct {
	Node   string `json:"node"`
	Name   string `json:"name"`
	ID     string `json:"id"`
	Size   int64  `json:"size"` // bytes
	Device string `json:"device"`
	Group  string `json:"group"`
}

// Journal is a journal of a node; Group is the group it serves, empty if none.
type Journal struct {
	Node    string   `json:"node"`
	Name    string   `json:"name"`
	Size    int64    `json:"size"` // bytes
	Devices []string `json:"devices"`
	Group   string   `json:"group"`
	Auto    bool     `json:"auto"`  // made by group create, deleted with the group
	Alarm   int      `json:"alarm"` // high-water mark that has been told, percent: 0, 70 or 90
	Cause   string   `json:"cause"` // of the alarm
}

// Host may open a virtual volume.
type Host struct {
	Name     string `json:"name"` // TLS name, or IP address
	ReadOnly bool   `json:"read_only"`
}

// Vvol is what a host opens by name. No hosts: everybody on loopback, nobody elsewhere.
type Vvol struct {
	Name     string `json:"name"`
	Volume   string `json:"volume"` // NODE/NAME
	Size     int64  `json:"size"`
	Hosts    []Host `json:"hosts"`
	InFlight string `json:"in_flight"` // policy of the latest switch
	// At has the gateways that lead it to another volume than Volume.
	At map[string]string `json:"at,omitempty"`
}

// Pair is a primary volume and its secondary; Number is theirs in the group's log, from 1, never used again.
type Pair struct {
	Number    uint16 `json:"number"`
	Primary   string `json:"primary"`   // NODE/NAME
	Secondary string `json:"secondary"` // NODE/NAME
	Size      int64  `json:"size"`
	// AssumeEqual: both held the same when the pair was made; nothing was copied.
	AssumeEqual bool `json:"assume_equal,omitempty"`
	// Removing: the pair is on its way out of the group.
	Removing bool `json:"removing,omitempty"`
}

// Group is a consistency group. Primary and Epoch change only by a decision (see Migration).
type Group struct {
	Name string `json:"name"`
	Settings
	Epoch            uint64 `json:"epoch"`
	Primary          string `json:"primary"`
	Secondary        string `json:"secondary"`
	PrimaryJournal   string `json:"primary_journal"`
	SecondaryJournal string `json:"secondary_journal"`
	// SecondaryJournalSize is in bytes: what a step may take is measured by it where the primary has no journal.
	SecondaryJournalSize int64  `json:"secondary_journal_size,omitempty"`
	Pairs                []Pair `json:"pairs"`
	NextNumber           uint16 `json:"next_number"`
	Suspended            bool   `json:"suspended"` // by command
	Migrations           int    `json:"migrations"`
	Revision             uint64 `json:"revision"` // raised by every change; nodes answer an older spec with what they hold

	// Lone is the volume, NODE/NAME at the source, for whose move the group was made; "": it was made by command. It has no secondary.
	Lone string `json:"lone,omitempty"`

	// Promotion is the one by which the present primary has become it; nil: it was none.
	Promotion *Promotion `json:"promotion,omitempty"`

	// WANGone has the bytes sent by nodes that have left the group, as they last told.
	WANGone map[string]int64 `json:"wan_gone,omitempty"`
}

// Decision values of a Migration.
const (
	DecidedNone   = ""
	DecidedTarget = "target" // epoch e+1
	DecidedSource = "source" // epoch e+2
)

// Migration is one move of a group's primary. Epoch is the source's epoch e when the move was registered: the target
// may open e+1, and if that is refused the source goes on in e+2.
type Migration struct {
	ID            string            `json:"id"`
	Group         string            `json:"group"`
	Source        string            `json:"source"`
	Target        string            `json:"target"`
	Strategy      string            `json:"strategy"`
	Backlog       string            `json:"backlog"`
	Mirror        bool              `json:"mirror"`
	InFlight      string            `json:"in_flight"`
	Paths         string            `json:"paths,omitempty"` // PathsAll or PathsOneByOne
	Limit         int64             `json:"limit"`           // bytes a second; 0: none
	Commit        bool              `json:"commit"`
	Epoch         uint64            `json:"base_epoch"`
	Volumes       []MovedVolume     `json:"volumes"`
	SourceJournal string            `json:"source_journal"`
	TargetJournal string            `json:"target_journal"`
	Phase         string            `json:"phase"`
	Decided       string            `json:"decided"`
	Error         string            `json:"error"`
	Steps         []Step            `json:"steps"`
	Labels        map[string]string `json:"labels,omitempty"`
	WANBytesStart int64             `json:"wan_bytes_start"`
	Seen          MoveSeen          `json:"seen"`

	MadeVolumes []string `json:"made_volumes"` // target volumes that the move itself makes, NODE/NAME
	MadeJournal string   `json:"made_journal"` // likewise
	JournalSize int64    `json:"journal_size"` // of a made journal, bytes
	VvolsMoved  bool     `json:"vvols_moved"`  // virtual volumes name the target's volumes
	// Gateways are those that are switched one by one, in this order; nil: not listed yet.
	Gateways []MovePath `json:"gateways"`
	RunAsked bool       `json:"run_asked"` // migrate.run may have been sent: the target decides from here on
	Undo     []string   `json:"undo"`      // what is still to be done after the move has gone back: "METHOD NODE [NAME]"
	// Abort says why the move is going back by command; it is aborted when the source serves again. "": it is not.
	Abort string `json:"abort,omitempty"`
	// StopAt is the phase in which the move waits to be continued, registered or switched; "": it does not.
	StopAt    string    `json:"stop_at,omitempty"`
	Continued time.Time `json:"continued,omitzero"`
	LimitTold int64     `json:"limit_told,omitempty"` // the limit that the target has been told
	// Untold: the secondary could not be reached, from the source either, when the move began. It is told of it when it is back.
	Untold bool `json:"untold,omitempty"`
	// Lone is the volume in no group that is moved, NODE/NAME at the source; "": a group is.
	Lone string `json:"lone,omitempty"`
	// SourceLost, TargetLost: that node was given up behind the decision with what only it had. Lost lists what a lost source takes with it.
	SourceLost bool     `json:"source_lost,omitempty"`
	TargetLost bool     `json:"target_lost,omitempty"`
	Lost       []string `json:"lost,omitempty"`
	// Promoted ended the move: the group's secondary serves.
	Promoted *Reign `json:"promoted,omitempty"`

	CommitTry int        `json:"commit_try,omitempty"` // counts the commits that have begun to compare anew
	Accept    bool       `json:"accept,omitempty"`     // the present one lets go of the source though it differs
	Check     *MoveCheck `json:"check,omitempty"`      // of the last commit, once over; nil: none has been asked for since, or it goes on
}

// How hosts are led to the target of a move.
const (
	PathsAll      = "all"        // by all gateways at once
	PathsOneByOne = "one-by-one" // gateway by gateway, each confirmed before the next
)

// MovePath is one gateway that is switched by itself.
type MovePath struct {
	Gateway string    `json:"gateway"`
	State   string    `json:"state"`
	At      time.Time `json:"at,omitzero"` // of the state
}

// States of a MovePath.
const (
	PathWaits     = "waits"     // it leads to the source
	PathLed       = "led"       // it is to lead to the target, and has not confirmed it
	PathConfirmed = "confirmed" // it leads to the target
	PathLate      = "late"      // it has not confirmed in time and was passed over; it learns of it when it is back, or by the seal
)

// NextPath is the gateway that is to be switched next, or to confirm; nil if there is none left.
func (m *Migration) NextPath() *MovePath {
	for i := range m.Gateways {
		if p := &m.Gateways[i]; p.State == PathWaits || p.State == PathLed {
			return p
		}
	}
	return nil
}

// MoveSeen is what the target last told of a move, kept for the time when nobody can tell it any more.
type MoveSeen struct {
	Cut          *uint64  `json:"cut"`
	Epoch        *uint64  `json:"epoch"`
	PauseMS      *float64 `json:"pause_ms"`
	Total        *int64   `json:"total"`
	Present      *int64   `json:"present"`
	Background   *int64   `json:"background"`
	OnDemand     *int64   `json:"on_demand"`
	Twice        *int64   `json:"twice"`
	WANBytesSent *int64   `json:"wan_bytes_sent"`
	Carried      *int64   `json:"carried,omitempty"`
	CarryTotal   *int64   `json:"carry_total,omitempty"`
}

// MovedVolume maps one volume of the group onto its place at the target.
type MovedVolume struct {
	Number uint16 `json:"number"`
	Source string `json:"source"` // NODE/NAME
	Target string `json:"target"` // NODE/NAME
	Size   int64  `json:"size"`
}

// Step is one completed step of a move.
type Step struct {
	Step string    `json:"step"`
	At   time.Time `json:"at"`
}

// Steps of a move, in order (INTERFACE `steps[].step`; kill points use the same names).
const (
	StepRegister   = "register"   // S603-604, manager
	StepCopy       = "copy"       // copy-first only
	StepThrough    = "through"    // S701
	StepSwitch     = "switch"     // S702-704, manager and gateways
	StepPend       = "pend"       // S802, target
	StepSeal       = "seal"       // S901-906, source
	StepDecide     = "decide"     // the compare-and-swap, manager
	StepSource     = "source"     // S807-809, target and secondary
	StepRun        = "run"        // S810-811, target
	StepDrained    = "drained"    // S907-910, source
	StepSingle     = "single"     // S818, secondary
	StepFill       = "fill"       // S911-916, S820-822, target
	StepDeregister = "deregister" // S1601-1602, manager
)

// What becomes of the records that the secondary has not got at the cut of a move.
const (
	BacklogDrain = "drain" // the source sends them
	BacklogCarry = "carry" // they move to the target, which sends them
)

// Points of the carrying at which tests kill a process.
const (
	PointCarryMake  = "carry-make"  // target: the log for it is made
	PointCarry      = "carry"       // target: all of it is there; its record that it feeds the secondary with it
	PointCarried    = "carried"     // source: its record that it sends nothing more
	PointCarryFront = "carry-front" // target: it stands in front of its own log
	PointCarryFree  = "carry-free"  // target: its space is given back
)

// Strategies of a move.
const (
	StrategySwitchFirst = "switch-first" // hosts are led to the target, then it is filled
	StrategyCopyFirst   = "copy-first"   // the target is filled, then hosts are led to it
)

// Points of a resize at which tests kill a process. At a node: around the growth of the device, and around what shows the new
// size to hosts. At the manager: around the store of what a node has done, and around the wait for gateways.
const (
	PointGrow   = "grow"
	PointResize = "resize"
)

// Points of a move that goes back at which tests kill a process.
const (
	PointAbort   = "abort"   // manager: the opposite swap
	PointAborted = "aborted" // manager: the end of an abort
	PointUngroup = "ungroup" // manager: the group of a volume in none goes, behind its move
	PointPath    = "path"    // manager: one gateway is led to the target (--paths one-by-one)
	PointRefuse  = "refuse"  // target: its promise never to take over
	PointReopen  = "reopen"  // source: its record that it goes on
	PointCancel  = "cancel"  // all nodes: the move is forgotten
	PointCompare = "compare" // target and source: source and target are being compared; manager: the result is stored
)

// Phases of a move: the last thing completed.
const (
	PhaseRegistered   = "registered"
	PhaseCopying      = "copying"
	PhaseThrough      = "through"
	PhaseSwitched     = "switched"
	PhasePending      = "pending"
	PhaseTransitional = "transitional"
	PhaseMigrating    = "migrating"
	PhaseFilled       = "filled"
	PhaseCommitted    = "committed"
	PhaseAborted      = "aborted"
	PhaseFailed       = "failed"
)

// Event is something that happened, for `gantline events`.
type Event struct {
	Revision uint64    `json:"revision"`
	At       time.Time `json:"at"`
	Object   string    `json:"object"`
	Kind     string    `json:"kind"`
	Cause    string    `json:"cause"`
	Message  string    `json:"message"`
}

// MaxGroups is how many groups a node takes; a volume in no group counts as one until its move has been committed.
const MaxGroups = 64

// CannotCarry says why what the secondary of a group lacks cannot be carried by a move; empty: it can.
func CannotCarry(g *Group) string {
	switch {
	case g.Promotion != nil:
		return "nothing is copied to " + g.Secondary + " since the promotion, so there is no backlog: what that lacks stands in the changed map, " +
			"which moves in any case: move it without --backlog carry"
	case g.Log == LogQueue:
		return "--backlog carry moves a log on disk; this group keeps its log in memory (--log queue), and all of it has to be at the " +
			"secondary before the cut: move it without --backlog carry"
	case g.Mode == ModeSync:
		return "--backlog carry is for asynchronous groups: what a synchronous secondary lacks stands in the changed map, which moves in " +
			"any case: move it without --backlog carry"
	case g.Mode == ModePeriodic:
		return "--backlog carry is for asynchronous groups: what a periodic secondary lacks stands in the changed map, which moves in " +
			"any case: move it without --backlog carry"
	}
	return ""
}
