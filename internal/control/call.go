package control

import (
	"time"
)

// Methods of the calls that a node answers (wire purpose "call", JSON in and out). Every method may be repeated: a call
// whose answer was lost is made again with the same parameters and gives the same result.
const (
	CallNodeStatus     = "node.status"     // NodeStatusIn → NodeStatus
	CallNodeEvents     = "node.events"     // EventsAfter → NodeEvents
	CallVolumeCreate   = "volume.create"   // VolumeCreate → VolumeStatus
	CallVolumeResize   = "volume.resize"   // VolumeResize → VolumeStatus ; to the secondary, then to the primary
	CallVolumeDelete   = "volume.delete"   // NameOnly → {}
	CallJournalCreate  = "journal.create"  // JournalCreate → JournalStatus
	CallJournalDelete  = "journal.delete"  // NameOnly → {}
	CallJournalAdd     = "journal.add"     // JournalAdd → JournalStatus
	CallGroupConfigure = "group.configure" // GroupSpec → GroupStatus
	CallGroupSuspend   = "group.suspend"   // GroupSuspend → GroupStatus
	CallGroupResume    = "group.resume"    // GroupResume → GroupStatus
	CallGroupDelete    = "group.delete"    // NameOnly → {}
	CallPairCheck      = "pair.check"      // PairRef → PairChecked ; to the primary
	CallPairRemove     = "pair.remove"     // PairRef → PairRemoved ; to the primary, then to the secondary
	CallGroupVerify    = "group.verify"    // GroupVerify → VerifyStatus ; to the primary, returns at once
	CallGroupVerified  = "group.verified"  // NameOnly → VerifyStatus ; to the primary
	CallGroupDigests   = "group.digests"   // DigestAsk → DigestFound ; primary to secondary

	CallMigrateCheck      = "migrate.check"      // MigrationSpec → MigrationCheck
	CallMigrateRegister   = "migrate.register"   // MigrationSpec → {} ; to secondary, source, target
	CallMigrateThrough    = "migrate.through"    // MigrationID → {} ; to the target
	CallMigrateRun        = "migrate.run"        // MigrationID → {} ; to the target, returns at once
	CallMigrateStatus     = "migrate.status"     // MigrationID → MigrationStatus ; any of the three
	CallMigrateSet        = "migrate.set"        // MigrationSet → {} ; to the target
	CallMigrateAbort      = "migrate.abort"      // MigrationID → {} ; to the target: it never takes over
	CallMigrateCancel     = "migrate.cancel"     // MigrationID → {} ; a move that has not been run: forget it
	CallMigrateDeregister = "migrate.deregister" // MigrationID → {} ; to secondary, target, source in this order

	CallMigrateSeal   = "migrate.seal"   // MigrationID → Handover ; target to source
	CallMigrateReopen = "migrate.reopen" // MigrationID → ReopenResult ; target (or manager after the opposite swap) to source
	CallMigrateCopy   = "migrate.copy"   // MigrationID → {} ; to the target of a copy-first move: begin to copy
	CallMigrateJoin   = "migrate.join"   // MigrationID → CopyJoin ; target to source, copy-first: be sent the log
	CallMigrateMarks  = "migrate.marks"  // CopyMarks → CopyMarked ; target to source: what has to be fetched again
	CallMigrateTaken  = "migrate.taken"  // CopyTaken → {} ; target to source: that has been noted
	CallMigrateTip    = "migrate.tip"    // CopyAsk → CopyTip ; target to source: how far its log is
	// CallMigrateAbandon tells source and target of a decided move that the secondary was forgotten, or the target that the source was:
	// MigrationAbandon → {}.
	CallMigrateAbandon = "migrate.abandon"

	CallMigrateRefill = "migrate.refill" // MigrationRefill → MigrationRefilled ; target to secondary, while the source is away
	CallMigrateSource = "migrate.source" // MigrationID → MigrationStatus ; target to secondary: tells it, learns its cursors
	CallMigrateSingle = "migrate.single" // MigrationSingle → {} ; target to secondary

	CallMigrateCarry   = "migrate.carry"   // CarryAsk → CarryPage ; target to source: records that the secondary lacks
	CallMigrateCarried = "migrate.carried" // MigrationID → CarryEnd ; target to source: it has them all, durably

	CallMigrateChanged = "migrate.changed" // ChangedAsked → ChangedPage ; target to sealed source: what the secondary lacks
)

// EventsAfter asks for what a node has noticed by itself since the event of that number; 0: all that it has kept.
type EventsAfter struct {
	After uint64 `json:"after"`
}

// NodeEvents are events of one run of a node; their numbers begin anew with each.
type NodeEvents struct {
	Instance string      `json:"instance"`
	Events   []NodeEvent `json:"events"`
}

// NodeEvent is something that a node has noticed.
type NodeEvent struct {
	Number  uint64    `json:"number"`
	At      time.Time `json:"at"`
	Object  string    `json:"object"`
	Kind    string    `json:"kind"`
	Cause   string    `json:"cause"`
	Message string    `json:"message"`
}

// NameOnly names one object of the called node.
type NameOnly struct {
	Name string `json:"name"`
	// For is, of a volume that is deleted, the move that had made it and has gone back: one that it has brought hosts to stays.
	For string `json:"for,omitempty"`
}

// MigrationID names a move.
type MigrationID struct {
	ID string `json:"id"`
}

// MigrationCancel names a move that is to be forgotten, and never to be registered later. Epoch is its source's e: a group that was
// deleted and made again has a higher one, and may use the id again.
type MigrationCancel struct {
	ID    string `json:"id"`
	Epoch uint64 `json:"epoch"`
}

// MigrationAbandon has a decided move go on without a node that was given up with what only it has: the secondary, or the source, of a group
// that is not copied.
type MigrationAbandon struct {
	ID         string `json:"id"`
	SourceLost bool   `json:"source_lost,omitempty"`
}

// MigrationEnd is a MigrationCancel at whatever stage the move is; By, if not nil, says that the group's secondary has been promoted
// meanwhile, which ends a move for good.
type MigrationEnd struct {
	MigrationCancel
	By *Reign `json:"by,omitempty"`
	// TargetLost, to a source that is to go on: the target has served, and was given up with what hosts wrote there.
	TargetLost bool `json:"target_lost,omitempty"`
}

// MigrationRefill asks a secondary for bytes of a volume as they are applied there, once all up to Cut is.
type MigrationRefill struct {
	ID     string `json:"id"`
	Number uint16 `json:"number"`
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
	Cut    uint64 `json:"cut"`
}

// MigrationRefilled is the answer.
type MigrationRefilled struct {
	Data []byte `json:"data"`
}

// MigrationSet changes a move under way: Limit of its background copy, bytes a second; 0: none.
type MigrationSet struct {
	ID    string `json:"id"`
	Limit int64  `json:"limit"`
}

// VolumeCreate asks for a volume. Device empty: DATA-DIR/volumes/NAME.raw. For is the move that it is made for, if it is: once
// that has been cancelled a call that comes late makes nothing.
type VolumeCreate struct {
	Name   string          `json:"name"`
	Size   int64           `json:"size"`
	Device string          `json:"device"`
	For    MigrationCancel `json:"for,omitzero"`
}

// VolumeResize makes a volume larger. Group and Role are what the manager knows it as: a primary's must not grow before its
// secondary's. Check: only say whether it could be done.
type VolumeResize struct {
	Name  string `json:"name"`
	Size  int64  `json:"size"`     // bytes
	Group string `json:"in_group"` // "": in none
	Role  string `json:"role"`     // lone, primary or secondary
	Check bool   `json:"check"`
}

// JournalCreate asks for a journal of Size bytes in all; Devices empty: DATA-DIR/journals/NAME.jnl. For: as of VolumeCreate.
type JournalCreate struct {
	Name    string          `json:"name"`
	Size    int64           `json:"size"`
	Devices []string        `json:"devices"`
	For     MigrationCancel `json:"for,omitzero"`
}

// JournalAdd has a journal grow by one device: an existing one, or a new file of Size bytes. Have are its devices before
// that, so that a repeated call does not add another.
type JournalAdd struct {
	Name   string   `json:"name"`
	Size   int64    `json:"size"`
	Device string   `json:"device"`
	Have   []string `json:"have"`
}

// VolumeStatus is a node's word on one of its volumes. Nil: not known.
type VolumeStatus struct {
	Name         string  `json:"name"`
	ID           string  `json:"id"`
	Size         int64   `json:"size"`
	Device       string  `json:"device"`
	Group        string  `json:"group"`
	Role         string  `json:"role"`  // "lone", "primary", "secondary", "target", "source", "retired"
	Mode         string  `json:"mode"`  // normal, through, pending, migrating; or readonly, moved, failed
	State        string  `json:"state"` // "ok" or what is wrong
	Applied      *uint64 `json:"applied"`
	ChangedBytes *int64  `json:"changed_bytes"`
	PresentBytes *int64  `json:"present_bytes"`
}

// JournalStatus is a node's word on one of its journals (document Fig. 22A).
type JournalStatus struct {
	Name        string   `json:"name"`
	Size        int64    `json:"size"`
	Used        int64    `json:"used_bytes"`
	Capacity    int64    `json:"capacity_bytes"`
	Group       string   `json:"group"`
	Devices     []string `json:"devices"`
	Stored      uint64   `json:"stored"`
	Transferred uint64   `json:"transferred"`
	Applied     uint64   `json:"applied"`
	Discarded   uint64   `json:"discarded"`
	// Alarm is the high-water mark that it has reached, in percent: 0, 70 or 90. Cause says why it fills up.
	Alarm int    `json:"alarm"`
	Cause string `json:"cause"`
}

// Roles of a node in a group.
const (
	RoleLone      = "lone" // of a volume: in no group
	RolePrimary   = "primary"
	RoleSecondary = "secondary"
	RoleTarget    = "target"  // of a move, not yet or just now primary
	RoleSource    = "source"  // sealed by a move, still feeding target and secondary
	RoleRetired   = "retired" // deregistered; refuses hosts for ever
)

// GroupSpec is what the manager wants a node to do for a group: the group, and where to find the others. A node takes
// its Role from the spec only when it does not have the group yet; later roles come from moves.
type GroupSpec struct {
	Group   Group             `json:"group"`
	Role    string            `json:"role"`    // RolePrimary or RoleSecondary
	Address map[string]string `json:"address"` // node → frames address
	// Links has the settings of the links from the called node, by the node at their other end.
	Links map[string]LinkSettings `json:"links,omitempty"`
}

// GroupSuspend asks the primary to stop copying and to mark what changes.
type GroupSuspend struct {
	Name string `json:"name"`
}

// GroupResume asks the primary to resync from the changed map.
type GroupResume struct {
	Name              string `json:"name"`
	AllowInconsistent bool   `json:"allow_inconsistent"`
}

// GroupStatus is a node's word on a group it has a role in; sequences are this node's own.
type GroupStatus struct {
	Name       string `json:"name"`
	Role       string `json:"role"`
	State      string `json:"state"` // as INTERFACE §3; the secondary says "paired" or "failed", "split-brain"
	Epoch      uint64 `json:"epoch"`
	Node       string `json:"node"`        // the epoch's node
	CopySource string `json:"copy_source"` // secondary and target: "a" or "transitional a->b"
	Peer       string `json:"peer"`        // the node at the other end of the copy link
	LinkUp     bool   `json:"link_up"`

	RTTMS       *float64 `json:"rtt_ms"`      // primary: of the link, nil: not known
	Connections int      `json:"connections"` // primary: of the stream now, 0 while it is down

	Appended uint64 `json:"appended"` // primary; stored at a secondary
	Durable  uint64 `json:"durable"`
	Sent     uint64 `json:"sent"`
	Acked    uint64 `json:"acked"`
	Applied  uint64 `json:"applied"` // secondary's own; at a primary what the secondary last told
	Heard    bool   `json:"heard"`   // Applied and Acked are known in this run

	LagBytes int64 `json:"lag_bytes"`
	// CarriedBytes is what the secondary has still to get of the log that a move has carried here; a part of LagBytes.
	CarriedBytes int64   `json:"carried_bytes,omitempty"`
	LagSeconds   float64 `json:"lag_seconds"`
	ChangedBytes int64   `json:"changed_bytes"`
	Consistent   bool    `json:"consistent"`
	WANBytesSent int64   `json:"wan_bytes_sent"` // by this node
	BlockedOn    string  `json:"blocked_on"`
	Late         bool    `json:"late"`    // primary: the lag is longer than the group's --rpo
	Stopped      bool    `json:"stopped"` // primary: the secondary is behind and gets nothing
	Error        string  `json:"error"`
	Overruns     int64   `json:"overruns"` // periodic: intervals not finished in time

	JournalUsed     int64       `json:"journal_used"`
	JournalCapacity int64       `json:"journal_capacity"`
	Copy            *CopyStatus `json:"copy"`

	Promoted *Promotion `json:"promoted,omitempty"` // primary: it was a secondary until then

	// Newer, in the answer to an older spec than the node holds: what it holds. It has done nothing.
	Newer *Group `json:"newer,omitempty"`
}

// CopyStatus is a background copy under way.
type CopyStatus struct {
	Kind       string   `json:"kind"` // initial, resync, periodic, migration
	Percent    float64  `json:"percent"`
	BytesDone  int64    `json:"bytes_done"`
	BytesTotal int64    `json:"bytes_total"`
	ETASeconds *float64 `json:"eta_seconds"`
}

// NodeStatus is all that a node says of itself.
type NodeStatus struct {
	Name       string            `json:"name"`
	Install    string            `json:"install"`
	Instance   string            `json:"instance"`
	Volumes    []VolumeStatus    `json:"volumes"`
	Journals   []JournalStatus   `json:"journals"`
	Groups     []GroupStatus     `json:"groups"`
	Migrations []MigrationStatus `json:"migrations"`
}

// MigrationSpec is a move as its three nodes learn it; each keeps it on disk.
type MigrationSpec struct {
	ID            string            `json:"id"`
	Group         Group             `json:"group"` // as at registration; Epoch is the source's e
	Source        string            `json:"source"`
	Target        string            `json:"target"`
	Secondary     string            `json:"secondary"`
	Volumes       []MovedVolume     `json:"volumes"`
	SourceJournal string            `json:"source_journal"` // NODE/NAME
	TargetJournal string            `json:"target_journal"`
	InFlight      string            `json:"in_flight"`
	Limit         int64             `json:"limit"`
	Address       map[string]string `json:"address"`
	Strategy      string            `json:"strategy,omitempty"` // empty: switch-first
	Backlog       string            `json:"backlog,omitempty"`  // empty: drain
}

// Carries says that what the secondary has not got at the cut moves to the target, instead of being sent by the source.
func (s *MigrationSpec) Carries() bool { return s.Backlog == BacklogCarry }

// CopyFirst says that the target is filled before hosts are led to it.
func (s *MigrationSpec) CopyFirst() bool { return s.Strategy == StrategyCopyFirst }

// CopyJoin says where the source's log begins for the target of a copy-first move, in this run of the source.
type CopyJoin struct {
	Run    string     `json:"run"`  // of the source's process
	Base   uint64     `json:"base"` // every record behind it will be sent
	Table  []TableRow `json:"table"`
	Token  uint64     `json:"token"`  // for CopyTaken
	Marked bool       `json:"marked"` // blocks have to be fetched again: CallMigrateMarks
}

// CopyMarks asks for marked blocks of a volume, from one on.
type CopyMarks struct {
	ID     string `json:"id"`
	Run    string `json:"run"`
	Number uint16 `json:"number"`
	From   int64  `json:"from"`
}

// CopyMarked are runs of regions, {first, number}; Next is where to ask on, -1 at the end.
type CopyMarked struct {
	Runs [][2]int64 `json:"runs"`
	Next int64      `json:"next"`
}

// CopyTaken says that all marked regions count as absent at the target, durably.
type CopyTaken struct {
	ID    string `json:"id"`
	Run   string `json:"run"`
	Token uint64 `json:"token"`
}

// CopyAsk asks a source how far it is. Hasten: hosts are held, or about to be.
type CopyAsk struct {
	ID     string `json:"id"`
	Hasten bool   `json:"hasten"`
}

// CopyTip is how far a source is.
type CopyTip struct {
	Run       string `json:"run"`
	Tip       uint64 `json:"tip"` // its newest record; durable with CopyAsk.Hasten
	Sealed    bool   `json:"sealed"`
	Streaming bool   `json:"streaming"` // the target is in its stream
	HostOps   uint64 `json:"host_ops"`
	WANBytes  int64  `json:"wan_bytes"`
}

// MigrationCheck lists why a move would be refused by the called node, and what it would need.
type MigrationCheck struct {
	Refusals   []string `json:"refusals"`
	DataBytes  int64    `json:"data_bytes"`  // source: bytes that are not holes
	FreeBytes  int64    `json:"free_bytes"`  // target: room on the file system below
	Backlog    int64    `json:"backlog"`     // source: records not yet at the secondary
	WriteBytes int64    `json:"write_bytes"` // source: bytes written per second just now
	// LinkDown, at the source: the secondary cannot be reached from there. The move may begin before it is told.
	LinkDown bool `json:"link_down"`
	// CarrySize, at the source: bytes that a log of what the secondary lacks takes, with room for what comes until the cut.
	CarrySize int64 `json:"carry_size"`
}

// Handover is what a sealed source gives to the target (S906): everything the target needs to go on at Cut+1.
type Handover struct {
	ID    string     `json:"id"`
	Epoch uint64     `json:"epoch"` // e
	Cut   uint64     `json:"cut"`   // N; the fence is record N
	Table []TableRow `json:"table"`
	Done  []byte     `json:"done"` // table of done requests, volume's encoding
	Copy  CopyState  `json:"copy"`
	// Behind, copy-first: nothing is sealed and nothing handed over, because the target is not in the stream; hosts go on at the
	// source. Empty otherwise.
	Behind string `json:"behind,omitempty"`
}

// CopyState is how far the copying to the secondary has come when its source is sealed.
type CopyState struct {
	// Suspended: the secondary is out of the stream. The source sends nothing more; what the secondary lacks up to the cut is
	// marked. Else it gets the rest up to the cut from the source, and marks are of blocks still to be copied.
	Suspended bool `json:"suspended"`
	Marked    bool `json:"marked"` // there are marks: see CallMigrateChanged

	Sync    bool   `json:"sync"`    // synchronous: the secondary was promised all that hosts were answered for
	Stale   uint64 `json:"stale"`   // synchronous: it was cut off while it was promised all, and lacks what begins here; 0: no
	Relied  uint64 `json:"relied"`  // how far it has said to have all, as its source frees records by
	Applied uint64 `json:"applied"` // what it is known to have applied

	Halted bool `json:"halted"`  // suspended by command
	Resume bool `json:"resume"`  // a resync was asked for and has not ended
	AtOnce bool `json:"at_once"` // it may leave the secondary inconsistent on the way

	// LagMS is how old the oldest write is that the secondary has not got, in milliseconds.
	LagMS int64 `json:"lag_ms,omitempty"`

	// Promoted: nothing is copied, for the source, or who had the group before it, was promoted.
	Promoted *Promotion `json:"promoted,omitempty"`

	Members []CopyMember `json:"members"`
	// WANBytes is what the source, and those before it, had sent to the secondary.
	WANBytes int64 `json:"wan_bytes"`
}

// CopyMember is one volume's part in it; see the node's record of it.
type CopyMember struct {
	Number  uint16 `json:"number"`
	Initial bool   `json:"initial"`
	Marked  bool   `json:"marked"`
	Equal   bool   `json:"equal"`
}

// ChangedAsked asks a sealed source for a page of the changed map of one volume, from block From on. Marks are set in it until
// the secondary has the block; none is set any more.
type ChangedAsked struct {
	ID     string `json:"id"`
	Number uint16 `json:"number"`
	From   int64  `json:"from"`
}

// ChangedPage: bit i of byte j of Bits is block From+8j+i. Next is where the page behind it begins, 0: there is none.
type ChangedPage struct {
	Bits []byte `json:"bits"`
	Next int64  `json:"next"`
}

// MigrationSingle asks a secondary to copy from the target alone. Abandon: also if it lacks records of the source, for the
// target's changed map has what they touch, or the target has them itself. Cut, if not 0: the last of them, which the secondary
// may not know yet because nobody feeds it.
type MigrationSingle struct {
	ID      string `json:"id"`
	Abandon bool   `json:"abandon"`
	Cut     uint64 `json:"cut,omitempty"`
}

// CarryAsk asks the source of a move that carries its backlog for the records from From on, once it is sealed; 0: for none. What
// does not go into one answer is asked for piece by piece: At is the first byte wanted of their encoding.
type CarryAsk struct {
	ID   string `json:"id"`
	From uint64 `json:"from"`
	At   int64  `json:"at"`
}

// CarryPage is a piece of an encoded batch (wire), Total bytes long as a whole.
type CarryPage struct {
	Base  uint64 `json:"base"`  // the secondary has the records up to here durably
	Cut   uint64 `json:"cut"`   // 0: not sealed yet
	Size  int64  `json:"size"`  // bytes that a log of the records behind Base takes, as of now
	Piece []byte `json:"piece"` // from At on
	Total int64  `json:"total"`
}

// CarryEnd is the source's last word on what it sends: nothing more.
type CarryEnd struct {
	WANBytes int64 `json:"wan_bytes"` // it, and those before it, had sent to the secondary
}

// CarryStatus is how far the backlog of a move has come to its target, in bytes of a log that holds it.
type CarryStatus struct {
	Total int64 `json:"total"`
	Done  int64 `json:"done"`
	Whole bool  `json:"whole"` // all of it is there, durably: the source is not needed for it any more
}

// TableRow mirrors record.Row.
type TableRow struct {
	Epoch       uint64 `json:"epoch"`
	Incarnation uint32 `json:"incarnation"`
	Node        string `json:"node"`
	First       uint64 `json:"first"`
	Last        uint64 `json:"last"`
	Closed      bool   `json:"closed"`
}

// ReopenResult says in which epoch the source serves after a refused move.
type ReopenResult struct {
	Epoch uint64 `json:"epoch"`
}

// MigrationStatus is a node's word on a move it takes part in.
type MigrationStatus struct {
	ID      string            `json:"id"`
	Node    string            `json:"node"`
	Role    string            `json:"role"`  // source, target, secondary
	Phase   string            `json:"phase"` // target: as INTERFACE §3, from registered to filled, or failed
	Modes   map[string]string `json:"modes"` // target: NODE/VOL → mode
	Cut     *uint64           `json:"cut"`
	Epoch   *uint64           `json:"epoch"`
	PauseMS *float64          `json:"pause_ms"`
	Refused bool              `json:"refused"` // target: has durably refused e+1; source: serves in e+2 or still in e
	Sealed  bool              `json:"sealed"`  // source
	Drained bool              `json:"drained"` // source: the secondary has all ≤ N durable
	Ready   bool              `json:"ready"`   // source: it may seal; on a queue, once the secondary is not far behind
	Copied  bool              `json:"copied"`  // target, copy-first: every region is here, durably, and it follows the source
	Durable uint64            `json:"durable"` // secondary: the last record that it has durably
	// Marked, at the target: the source's secondary was out of the stream. What it lacks up to the cut is marked here, and it
	// need not have the cut. Or what it lacks up to the cut was carried here.
	Marked bool `json:"marked"`
	// Carry, at the target of a move that carries its backlog, once there is something to be told.
	Carry   *CarryStatus `json:"carry,omitempty"`
	Serving uint64       `json:"serving"` // the epoch in which this node serves hosts; 0: it does not
	Total   int64        `json:"regions_total"`
	Present int64        `json:"regions_present"`
	// Abandoned, at the target: it has been told that the secondary was given up; SourceLost: that the source was.
	Abandoned  bool     `json:"abandoned,omitempty"`
	SourceLost bool     `json:"source_lost,omitempty"`
	AtRisk     []string `json:"at_risk"` // target: what only a source that is away has
	// Bytes fetched from the source.
	Background   int64  `json:"bytes_background"`
	OnDemand     int64  `json:"bytes_on_demand"`
	TwiceBytes   int64  `json:"bytes_twice"` // fetched more than once (after a crash)
	WANBytesSent int64  `json:"wan_bytes_sent"`
	BlockedOn    string `json:"blocked_on"`
	Error        string `json:"error"`
	Steps        []Step `json:"steps"`
	// Check, at the target: the comparison that the last commit has asked for in this run; nil: none has.
	Check *MoveCheck `json:"check,omitempty"`
}

// What nodes and gateways tell the manager (HTTP POST, JSON), and what they hear.
const (
	PathNodeSync    = "/v1/internal/nodes/%s/sync"        // NodeReport → NodeSyncReply, every 2 s and at start
	PathGatewaySync = "/v1/internal/gateways/%s/sync"     // GatewayReport → RouteTable, held until routes change or 5 s
	PathDecide      = "/v1/internal/migrations/%s/decide" // DecideRequest → DecideReply
)

// NodeReport registers a node and keeps it known as up.
type NodeReport struct {
	Node   Node           `json:"node"`
	Alarms []JournalAlarm `json:"alarms"` // of all journals in use
	// Promoted are the groups in which this node was promoted, by name.
	Promoted map[string]*Promotion `json:"promoted,omitempty"`
}

// JournalAlarm is the high-water mark that a journal of the node has reached; see JournalStatus.
type JournalAlarm struct {
	Journal string `json:"journal"` // of this node
	Level   int    `json:"level"`
	Cause   string `json:"cause"`
}

// NodeSyncReply: Refused is not empty if another live process has this name.
type NodeSyncReply struct {
	Refused string `json:"refused"`
}

// GatewayReport registers a gateway and confirms routes: Applied is the revision in force here.
type GatewayReport struct {
	Gateway Gateway         `json:"gateway"`
	Applied uint64          `json:"applied"`
	Vvols   []GatewayedVvol `json:"vvols"`
}

// GatewayedVvol is a virtual volume as a gateway has it.
type GatewayedVvol struct {
	Name     string `json:"name"`
	Sessions int    `json:"sessions"`
	Epoch    uint64 `json:"epoch"`
}

// RouteTable is what gateways route by.
type RouteTable struct {
	Refused  string  `json:"refused"`
	Revision uint64  `json:"revision"`
	Routes   []Route `json:"routes"`
}

// Route says where a virtual volume is served.
type Route struct {
	Vvol     string `json:"vvol"`
	Size     int64  `json:"size"`
	Node     string `json:"node"`
	Address  string `json:"address"`
	Volume   string `json:"volume"` // its name at the node
	Group    string `json:"group"`  // "": the volume is in none
	Epoch    uint64 `json:"epoch"`  // of the group: epochs of different groups have nothing to do with each other
	ReadOnly bool   `json:"read_only"`
	InFlight string `json:"in_flight"`
	Hosts    []Host `json:"hosts"`
}

// DecideRequest asks for the one compare-and-swap of a move: {primary source, epoch e} → {target, e+1}.
type DecideRequest struct {
	Node  string `json:"node"`
	Epoch uint64 `json:"epoch"` // e
	Cut   uint64 `json:"cut"`
}

// DecideReply: Decided is DecidedTarget or DecidedSource, whoever asked.
type DecideReply struct {
	Decided string    `json:"decided"`
	At      time.Time `json:"at"`
}
