package control

import "time"

// What the manager's API answers and the CLI prints (INTERFACE, "JSON"). A pointer is null when the value is not known
// now; nothing is ever left out.

// GroupView is `group show`.
type GroupView struct {
	Name              string             `json:"name"`
	Mode              string             `json:"mode"`
	Log               string             `json:"log"`
	Transfer          string             `json:"transfer"`
	Retain            string             `json:"retain"`
	IntervalSeconds   float64            `json:"interval_seconds"`
	SendEverySeconds  float64            `json:"send_every_seconds"`
	SendBytes         int64              `json:"send_bytes"`
	OnLinkLoss        string             `json:"on_link_loss"`
	RPOSeconds        float64            `json:"rpo_seconds"` // 0: off
	Limit             int64              `json:"limit"`       // bytes a second; 0: none
	Compress          string             `json:"compress"`
	State             *string            `json:"state"`
	Epoch             uint64             `json:"epoch"`
	Primary           string             `json:"primary"`
	Secondary         string             `json:"secondary"`
	Link              *string            `json:"link"`
	CopySource        *string            `json:"copy_source"`
	Sequence          SequenceView       `json:"sequence"`
	SecondarySequence SecondaryView      `json:"secondary_sequence"`
	Lag               LagView            `json:"lag"`
	ChangedBytes      *int64             `json:"changed_bytes"`
	Consistent        *bool              `json:"consistent"`
	WANBytesSent      *int64             `json:"wan_bytes_sent"`
	Late              *bool              `json:"late"`    // the lag is longer than --rpo
	Stopped           *bool              `json:"stopped"` // the secondary is behind and gets nothing
	BlockedOn         *string            `json:"blocked_on"`
	Journal           JournalSpaceView   `json:"journal"`
	Copy              *CopyStatus        `json:"copy"`
	Pairs             []PairView         `json:"pairs"`
	PrimaryJournal    string             `json:"primary_journal"`
	SecondaryJournal  string             `json:"secondary_journal"`
	Suspended         bool               `json:"suspended_by_command"`
	Overruns          *int64             `json:"overruns"` // periodic: intervals not finished in time
	Error             *string            `json:"error"`
	Promoted          *Promotion         `json:"promoted"`  // by which the primary has become it; null: by none
	Migration         string             `json:"migration"` // the latest one, if any
	Nodes             map[string]*string `json:"nodes"`     // role of each node that knows the group; null: it does not answer
}

// SequenceView has the primary's cursors.
type SequenceView struct {
	Appended *uint64 `json:"appended"`
	Durable  *uint64 `json:"durable"`
	Sent     *uint64 `json:"sent"`
	Acked    *uint64 `json:"acked"`
}

// SecondaryView has the secondary's cursors.
type SecondaryView struct {
	Stored  *uint64 `json:"stored"`
	Durable *uint64 `json:"durable"`
	Applied *uint64 `json:"applied"`
}

// LagView says how far the secondary is behind.
type LagView struct {
	Writes  *uint64  `json:"writes"`
	Bytes   *int64   `json:"bytes"`
	Seconds *float64 `json:"seconds"`
}

// JournalSpaceView is the primary's journal.
type JournalSpaceView struct {
	UsedBytes     *int64 `json:"used_bytes"`
	CapacityBytes *int64 `json:"capacity_bytes"`
}

// PairView is a pair of a group.
type PairView struct {
	Primary   string `json:"primary"`
	Secondary string `json:"secondary"`
	Size      int64  `json:"size"`
}

// PairListView is a line of `pair list`.
type PairListView struct {
	Group     string  `json:"group"`
	Primary   string  `json:"primary"`
	Secondary string  `json:"secondary"`
	Size      int64   `json:"size"`
	State     *string `json:"state"`
}

// MigrationView is `migrate show`.
type MigrationView struct {
	ID           string             `json:"id"`
	Group        string             `json:"group"`
	Source       string             `json:"source"`
	Target       string             `json:"target"`
	Strategy     string             `json:"strategy"`
	Backlog      string             `json:"backlog"`
	Mirror       bool               `json:"mirror"`
	Phase        string             `json:"phase"`
	Modes        map[string]*string `json:"modes"`
	Cut          *uint64            `json:"cut"`
	Epoch        *uint64            `json:"epoch"`
	PauseMS      *float64           `json:"pause_ms"`
	Regions      RegionsView        `json:"regions"`
	Bytes        MovedBytesView     `json:"bytes"`
	WANBytesSent *int64             `json:"wan_bytes_sent"`
	AtRisk       []string           `json:"at_risk"`
	BlockedOn    *string            `json:"blocked_on"`
	Error        string             `json:"error"`
	Steps        []Step             `json:"steps"`
	Decided      string             `json:"decided"`
	InFlight     string             `json:"in_flight"`
	Limit        int64              `json:"limit"`
	Volumes      []MovedVolume      `json:"volumes"`
	Paths        string             `json:"paths"`
	Gateways     []MovePath         `json:"gateways"` // that are switched one by one
	Check        *MoveCheck         `json:"check"`    // what the last commit has found; nil: none has compared yet
}

// RegionsView counts a move's regions.
type RegionsView struct {
	Total   *int64 `json:"total"`
	Present *int64 `json:"present"`
}

// MovedBytesView says how a move's data was fetched; Twice was fetched again after a crash.
type MovedBytesView struct {
	Background *int64 `json:"background"`
	OnDemand   *int64 `json:"on_demand"`
	Twice      *int64 `json:"twice"`
	// Carried of CarryTotal bytes of the log that the secondary has not got at the cut are at the target (--backlog carry); null: not
	// known, or none is carried.
	Carried    *int64 `json:"carried"`
	CarryTotal *int64 `json:"carry_total"`
}

// VvolView is `vvol show`.
type VvolView struct {
	Name     string            `json:"name"`
	Volume   string            `json:"volume"`
	Size     int64             `json:"size"`
	Epoch    uint64            `json:"epoch"`
	Hosts    []Host            `json:"hosts"`
	URIs     []string          `json:"uris"`
	Gateways []VvolGatewayView `json:"gateways"`
}

// VvolGatewayView is a vvol as one gateway has it.
type VvolGatewayView struct {
	Name     string  `json:"name"`
	Volume   string  `json:"volume"` // that it is to lead to
	Sessions *int    `json:"sessions"`
	Epoch    *uint64 `json:"epoch"`
}

// VolumeView is `volume show`.
type VolumeView struct {
	Name            string        `json:"name"`
	Node            string        `json:"node"`
	ID              string        `json:"id"`
	Size            int64         `json:"size"`
	Role            *string       `json:"role"`
	Mode            *string       `json:"mode"`
	Group           string        `json:"group"`
	Device          string        `json:"device"`
	Journal         bool          `json:"journal"`
	State           *string       `json:"state"`
	Applied         *uint64       `json:"applied"`
	ChangedBytes    *int64        `json:"changed_bytes"`
	PresentBytes    *int64        `json:"present_bytes"`
	CopySources     []CopyEndView `json:"copy_sources"`
	CopyTargets     []CopyEndView `json:"copy_targets"`
	MigrationSource *MoveEndView  `json:"migration_source"`
	MigrationTarget *MoveEndView  `json:"migration_target"`
	Vvols           []string      `json:"vvols"`
	Exports         []string      `json:"exports"` // the node's own NBD URIs of the volume
}

// CopyEndView is an entry of the document's copy source or copy target information.
type CopyEndView struct {
	Node    string `json:"node"`
	Address string `json:"address"`
	Volume  string `json:"volume"`
	Valid   bool   `json:"valid"`
}

// MoveEndView is the document's data migration source or target.
type MoveEndView struct {
	Node    string `json:"node"`
	Address string `json:"address"`
	Volume  string `json:"volume"`
}

// JournalView is `journal show`.
type JournalView struct {
	Name          string   `json:"name"`
	Node          string   `json:"node"`
	Size          int64    `json:"size"`
	UsedBytes     *int64   `json:"used_bytes"`
	CapacityBytes *int64   `json:"capacity_bytes"`
	Group         string   `json:"group"`
	Devices       []string `json:"devices"`
	Stored        *uint64  `json:"stored"`
	Transferred   *uint64  `json:"transferred"`
	Applied       *uint64  `json:"applied"`
	Discarded     *uint64  `json:"discarded"`
	Alarm         *int     `json:"alarm"` // percent: 0, 70 or 90 of it were used, and not far less since
	Cause         *string  `json:"cause"` // of the alarm
}

// States of a node or a gateway.
const (
	StateUp   = "up"
	StateDown = "down"
)

// NodeView is `node show`.
type NodeView struct {
	Name     string    `json:"name"`
	Site     string    `json:"site"`
	Address  string    `json:"address"`
	Peer     string    `json:"peer"` // where other nodes reach it
	State    string    `json:"state"`
	Volumes  []string  `json:"volumes"`
	Journals []string  `json:"journals"`
	Clusters []string  `json:"clusters"`
	NBD      []string  `json:"nbd"`
	Since    time.Time `json:"since"`
}

// GatewayView is `gateway show`.
type GatewayView struct {
	Name     string          `json:"name"`
	Site     string          `json:"site"`
	State    string          `json:"state"`
	NBD      []string        `json:"nbd"`
	Applied  *uint64         `json:"applied"`
	Wanted   uint64          `json:"wanted"`
	Vvols    []GatewayedVvol `json:"vvols"`
	Sessions *int            `json:"sessions"`
	Since    time.Time       `json:"since"`
}

// StatusView is `status`.
type StatusView struct {
	Healthy    bool            `json:"healthy"`
	Problems   []string        `json:"problems"`
	Groups     []GroupView     `json:"groups"`
	Nodes      []NodeView      `json:"nodes"`
	Gateways   []GatewayView   `json:"gateways"`
	Migrations []MigrationView `json:"migrations"`
}

// OperationView is one entry of `operations`: something that takes its time.
type OperationView struct {
	ID         string   `json:"id"`
	Kind       string   `json:"kind"` // migrate, drain, or a copy's kind
	Object     string   `json:"object"`
	Phase      string   `json:"phase"`
	Percent    *float64 `json:"percent"`
	ETASeconds *float64 `json:"eta_seconds"`
	Error      string   `json:"error"`

	ErrorKind Kind        `json:"error_kind,omitempty"`
	Items     []DrainItem `json:"items"` // of a drain
}

// PlanView is the answer to a dry run.
type PlanView struct {
	Plan       []string `json:"plan"`
	Refusals   []string `json:"refusals"`
	SpaceBytes *int64   `json:"space_bytes"`
	Seconds    *float64 `json:"seconds"`
	PauseMS    *float64 `json:"pause_ms"`
}

// Requests of the API. A name of a volume or journal is NODE/NAME.

// VolumeRequest creates a volume.
type VolumeRequest struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	Device string `json:"device,omitempty"`
}

// VolumeResizeRequest makes a volume larger, and its secondary.
type VolumeResizeRequest struct {
	Size int64 `json:"size"` // bytes
}

// JournalRequest creates a journal.
type JournalRequest struct {
	Name    string   `json:"name"`
	Size    int64    `json:"size"`
	Devices []string `json:"devices,omitempty"`
}

// JournalAddRequest grows a journal by a new file of Size bytes, or by a device: one of the two.
type JournalAddRequest struct {
	Size   int64  `json:"size,omitempty"`
	Device string `json:"device,omitempty"`
}

// VvolRequest creates a virtual volume.
type VvolRequest struct {
	Name   string   `json:"name"`
	Volume string   `json:"volume"`
	Hosts  []string `json:"hosts,omitempty"`
}

// HostRequest allows or denies a host.
type HostRequest struct {
	Host     string `json:"host"`
	ReadOnly bool   `json:"read_only,omitempty"`
}

// SwitchRequest leads a virtual volume to another volume.
type SwitchRequest struct {
	Volume   string   `json:"volume"`
	InFlight string   `json:"in_flight,omitempty"`
	Gateways []string `json:"gateways,omitempty"`
}

// GroupRequest creates a group. Empty: the default.
type GroupRequest struct {
	Name      string `json:"name"`
	Primary   string `json:"primary"`
	Secondary string `json:"secondary"`
	SettingsChange
	PrimaryJournal   string `json:"primary_journal,omitempty"`
	SecondaryJournal string `json:"secondary_journal,omitempty"`
}

// ResumeRequest resumes a suspended group.
type ResumeRequest struct {
	AllowInconsistent bool `json:"allow_inconsistent,omitempty"`
}

// PairRequest adds a pair to a group.
type PairRequest struct {
	Primary   string `json:"primary"`
	Secondary string `json:"secondary"`
	// AssumeEqual: both hold the same; samples are compared and nothing is copied.
	AssumeEqual bool `json:"assume_equal,omitempty"`
}

// MoveSetRequest changes a move under way.
type MoveSetRequest struct {
	Limit *int64 `json:"limit,omitempty" doc:"of the background copy, bytes a second; 0: none"`
}

// MoveCommitRequest ends a filled move.
type MoveCommitRequest struct {
	AcceptDifferences bool `json:"accept_differences,omitempty" doc:"let go of the source though the target differs from it"`
}

// MoveRequest starts a move.
type MoveRequest struct {
	Group    string            `json:"group"`
	To       string            `json:"to"`
	Map      map[string]string `json:"map,omitempty"` // source volume → target volume
	Journal  string            `json:"journal,omitempty"`
	Strategy string            `json:"strategy,omitempty"`
	Backlog  string            `json:"backlog,omitempty"`
	InFlight string            `json:"in_flight,omitempty"`
	Paths    string            `json:"paths,omitempty"`
	Mirror   bool              `json:"mirror,omitempty"`
	Limit    int64             `json:"limit,omitempty"`
	StopAt   string            `json:"stop_at,omitempty"`
	Commit   bool              `json:"commit,omitempty"`
}
