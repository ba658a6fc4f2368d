package control

import "strings"

// maxReason bounds a Reason, in bytes.
const maxReason = 160

// Reason is why something waits, in a form of which there are few: runs of digits become N, and it ends at 160 bytes.
// So sequences, addresses and times in it do not make a new series of each scrape.
func Reason(why string) string {
	var b strings.Builder
	digit := false
	for _, r := range strings.ToValidUTF8(why, "?") {
		was := digit
		digit = r >= '0' && r <= '9'
		switch {
		case digit && was:
			continue
		case digit:
			r = 'N'
		}
		if b.Len() >= maxReason {
			return b.String() + "…"
		}
		b.WriteRune(r)
	}
	return b.String()
}
