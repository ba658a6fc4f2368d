package control

import (
	"slices"
	"strings"
	"time"
)

// Values of a group's settings.
const (
	ModeAsync    = "async"
	ModeSync     = "sync"
	ModePeriodic = "periodic"

	LogJournal = "journal"
	LogQueue   = "queue"

	TransferPush = "push"
	TransferPull = "pull"

	RetainApplied     = "applied"
	RetainTransferred = "transferred"

	LinkLossContinue = "continue"
	LinkLossStop     = "stop"

	CompressOff  = "off"
	CompressS2   = "s2"
	CompressZstd = "zstd"
)

// Settings say how a group copies. `group create` takes them, `group set` changes them on a live group.
type Settings struct {
	Mode     string `json:"mode"`
	Log      string `json:"log"`
	Transfer string `json:"transfer"`
	Retain   string `json:"retain"`

	IntervalMS  int64  `json:"interval_ms"`   // periodic: from the begin of one step to that of the next
	SendEveryMS int64  `json:"send_every_ms"` // async: at least so long between two transfers; 0: at once
	SendBytes   int64  `json:"send_bytes"`    // async: transfer when so much waits; 0: do not wait for a quantity
	OnLinkLoss  string `json:"on_link_loss"`  // sync
	RPOMS       int64  `json:"rpo_ms"`        // a longer lag than this is late; 0: never
	Limit       int64  `json:"limit"`         // bytes a second to the secondary; 0: none
	Compress    string `json:"compress"`
}

// DefaultSettings are those of `group create` without flags.
func DefaultSettings() Settings {
	return Settings{Mode: ModeAsync, Log: LogJournal, Transfer: TransferPush, Retain: RetainApplied, IntervalMS: 30_000,
		OnLinkLoss: LinkLossContinue, Compress: CompressOff}
}

// Durations of the settings.
func (s *Settings) Interval() time.Duration  { return time.Duration(s.IntervalMS) * time.Millisecond }
func (s *Settings) SendEvery() time.Duration { return time.Duration(s.SendEveryMS) * time.Millisecond }
func (s *Settings) RPO() time.Duration       { return time.Duration(s.RPOMS) * time.Millisecond }

// SettingsChange names the settings that a request gives. Empty or nil: as it is, or the default of a new group.
type SettingsChange struct {
	Mode        string `json:"mode,omitempty"`
	Log         string `json:"log,omitempty"`
	Transfer    string `json:"transfer,omitempty"`
	Retain      string `json:"retain,omitempty"`
	IntervalMS  *int64 `json:"interval_ms,omitempty"`
	SendEveryMS *int64 `json:"send_every_ms,omitempty"`
	SendBytes   *int64 `json:"send_bytes,omitempty"`
	OnLinkLoss  string `json:"on_link_loss,omitempty"`
	RPOMS       *int64 `json:"rpo_ms,omitempty"`
	Limit       *int64 `json:"limit,omitempty"`
	Compress    string `json:"compress,omitempty"`
}

// Limits of the settings.
const (
	MinInterval = 100 * time.Millisecond
	maxPeriod   = 7 * 24 * time.Hour
	maxAmount   = int64(1) << 40 // bytes, or bytes a second
	minLimit    = int64(4096)    // bytes a second
)

// Apply returns s with the change made. A value that there is not, is out of range, or does not fit the others is a
// usage error that names its flag.
func (c *SettingsChange) Apply(s Settings) (Settings, error) {
	for _, w := range []struct {
		flag   string
		to     *string
		from   string
		values []string
	}{
		{"mode", &s.Mode, c.Mode, []string{ModeAsync, ModeSync, ModePeriodic}},
		{"log", &s.Log, c.Log, []string{LogJournal, LogQueue}},
		{"transfer", &s.Transfer, c.Transfer, []string{TransferPush, TransferPull}},
		{"retain", &s.Retain, c.Retain, []string{RetainApplied, RetainTransferred}},
		{"on-link-loss", &s.OnLinkLoss, c.OnLinkLoss, []string{LinkLossContinue, LinkLossStop}},
		{"compress", &s.Compress, c.Compress, []string{CompressOff, CompressS2, CompressZstd}},
	} {
		if w.from == "" {
			continue
		}
		if !slices.Contains(w.values, w.from) {
			return s, Errorf(KindUsage, "--%s %q: it is %s", w.flag, w.from, strings.Join(w.values, " or "))
		}
		*w.to = w.from
	}
	for _, n := range []struct {
		flag     string
		to, from *int64
		min, max int64
		zero     bool // 0 is allowed beside the range
		unit     string
	}{
		{"interval", &s.IntervalMS, c.IntervalMS, MinInterval.Milliseconds(), maxPeriod.Milliseconds(), false, "ms"},
		{"send-every", &s.SendEveryMS, c.SendEveryMS, 1, maxPeriod.Milliseconds(), true, "ms"},
		{"send-bytes", &s.SendBytes, c.SendBytes, 1, maxAmount, true, "bytes"},
		{"rpo", &s.RPOMS, c.RPOMS, 1, maxPeriod.Milliseconds(), true, "ms"},
		{"limit", &s.Limit, c.Limit, minLimit, maxAmount, true, "bytes a second"},
	} {
		if n.from == nil {
			continue
		}
		if v := *n.from; (v < n.min || v > n.max) && (v != 0 || !n.zero) {
			return s, Errorf(KindUsage, "--%s: %d %s is outside %d to %d%s", n.flag, v, n.unit, n.min, n.max,
				map[bool]string{true: ", and not 0", false: ""}[n.zero])
		}
		*n.to = *n.from
	}
	err := c.fits(&s)
	return s, err
}

// fits refuses what was given and means nothing in the mode that results, and combinations that cannot work.
func (c *SettingsChange) fits(s *Settings) error {
	given := func(n *int64) bool { return n != nil && *n != 0 }
	switch {
	case c.IntervalMS != nil && *c.IntervalMS != DefaultSettings().IntervalMS && s.Mode != ModePeriodic:
		return Errorf(KindUsage, "--interval belongs to --mode periodic, the group is %s", s.Mode)
	case c.OnLinkLoss != "" && c.OnLinkLoss != LinkLossContinue && s.Mode != ModeSync:
		return Errorf(KindUsage, "--on-link-loss %s belongs to --mode sync, the group is %s", c.OnLinkLoss, s.Mode)
	case (given(c.SendEveryMS) || given(c.SendBytes)) && s.Mode != ModeAsync:
		return Errorf(KindUsage, "--send-every and --send-bytes belong to --mode async, the group is %s", s.Mode)
	case (s.SendEveryMS != 0 || s.SendBytes != 0) && s.Mode != ModeAsync:
		return Errorf(KindUsage, "--mode %s does not go with the --send-every or --send-bytes that the group has: set them to 0", s.Mode)
	case s.Mode == ModeSync && s.Log == LogQueue:
		return Errorf(KindUsage, "--mode sync does not go with --log queue: its records are gone with the primary's process; use journal")
	case s.Mode == ModeSync && s.Transfer == TransferPull:
		return Errorf(KindUsage, "--mode sync does not go with --transfer pull: hosts would wait for the secondary to ask; use push")
	}
	return nil
}
