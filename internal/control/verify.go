package control

// GroupVerify asks the primary to compare both sides of a group.
type GroupVerify struct {
	Name   string `json:"name"`
	Repair bool   `json:"repair"`
}

// States of a verify.
const (
	VerifyRunning = "running"
	VerifyDone    = "done"
	VerifyFailed  = "failed"
)

// VerifyStatus is a primary's word on a verify.
type VerifyStatus struct {
	ID            string         `json:"id"`
	State         string         `json:"state"`
	Repair        bool           `json:"repair"`
	Cut           uint64         `json:"cut"` // sequence of the newest comparison; 0: none yet
	TotalBytes    int64          `json:"total_bytes"`
	ComparedBytes int64          `json:"compared_bytes"`
	Different     []VerifyExtent `json:"different"`
	RepairedBytes int64          `json:"repaired_bytes"`
	Error         string         `json:"error"`
}

// VerifyExtent is a part of a primary's volume that the secondary holds otherwise.
type VerifyExtent struct {
	Volume string `json:"volume"` // NODE/NAME
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
}

// DigestAsk asks a secondary how far it has compared the digest records of a run. What it found at records up to After
// has arrived and may be forgotten.
type DigestAsk struct {
	Name  string `json:"name"`
	Run   uint64 `json:"run"`
	After uint64 `json:"after"`
}

// DigestFound: all digest records of the run from First to UpTo have been compared, and differ where Different says. One
// up to Applied that is not among them is lost: it was compared by an earlier run of the secondary's process, or never.
type DigestFound struct {
	Applied   uint64          `json:"applied"`
	First     uint64          `json:"first"` // 0: none
	UpTo      uint64          `json:"up_to"`
	Different []DigestFinding `json:"different"`
}

// DigestFinding is a difference at a digest record, or why the record could not be compared.
type DigestFinding struct {
	Seq    uint64 `json:"seq"`
	Number uint16 `json:"number"` // of the volume in the group
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
	Error  string `json:"error,omitempty"`
}

// VerifyRequest verifies a group.
type VerifyRequest struct {
	Repair bool `json:"repair,omitempty"`
}

// VerifyView is `group verify`.
type VerifyView struct {
	ID            string         `json:"id"`
	Group         string         `json:"group"`
	State         string         `json:"state"`
	Cut           *uint64        `json:"cut"`
	TotalBytes    int64          `json:"total_bytes"`
	ComparedBytes int64          `json:"compared_bytes"`
	Different     []VerifyExtent `json:"different"`
	RepairedBytes int64          `json:"repaired_bytes"`
	Error         string         `json:"error"`
}

// PairRef names a pair by its number in a group. At: see PairRemoved. Gone, with a removal: the pair is taken out for good, so a
// secondary that was never told of it passes over its records; else who does not know it has nothing to do.
type PairRef struct {
	Name   string `json:"name"`
	Number uint16 `json:"number"`
	At     uint64 `json:"at,omitempty"`
	Gone   bool   `json:"gone,omitempty"`
}

// PairChecked lists which samples of a pair that was said to be equal differ. None: it is taken as copied.
type PairChecked struct {
	Different []VerifyExtent `json:"different"`
}

// PairRemoved: the volume is in no group any more. At, from the primary: what the secondary should have applied before
// it lets go of its own; 0: it will not get there now.
type PairRemoved struct {
	At uint64 `json:"at"`
}
