package block

import "bytes"

// IsZero says whether p holds nothing but zeros.
func IsZero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), 4096) // a piece that stays in the processor's cache
		if !bytes.Equal(p[:n], zeros[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}
