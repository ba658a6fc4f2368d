package volume

import "fmt"

// Mode says what a volume does with the requests of hosts.
type Mode uint8

const (
	ModeNormal    Mode = 1 // serves
	ModeThrough   Mode = 2 // relays everything to the relay (the source of a move)
	ModePending   Mode = 3 // holds everything until the next mode
	ModeMigrating Mode = 4 // serves, fetching regions that are absent
	ModeReadOnly  Mode = 5 // serves reads of the applied image
	ModeMoved     Mode = 6 // answers with who serves now; serves FlagFetch reads of a move's target
	ModeFailed    Mode = 7 // answers errors
)

var modeNames = map[Mode]string{
	ModeNormal: "normal", ModeThrough: "through", ModePending: "pending", ModeMigrating: "migrating",
	ModeReadOnly: "readonly", ModeMoved: "moved", ModeFailed: "failed",
}

func (m Mode) String() string {
	if s, ok := modeNames[m]; ok {
		return s
	}
	return fmt.Sprintf("mode(%d)", uint8(m))
}

// ParseMode is the inverse of String.
func ParseMode(s string) (Mode, error) {
	for m, name := range modeNames {
		if name == s {
			return m, nil
		}
	}
	return 0, fmt.Errorf("unknown mode %q", s)
}
