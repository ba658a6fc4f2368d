package block

import (
	"strings"
	"unsafe"
)

// Buffer returns n bytes that hold anything, to be read into: what make would do first, clearing them, costs as much as
// reading does. No byte may be handed on that has not been filled.
func Buffer(n int) []byte {
	if n < 4096 {
		return make([]byte, n)
	}
	// A Builder's memory is the one that the library takes without clearing it. The string is never used.
	var b strings.Builder
	b.Grow(n)
	b.WriteByte(0)
	return unsafe.Slice(unsafe.StringData(b.String()), b.Cap())[:n:n]
}
