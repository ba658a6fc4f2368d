package cli

import (
	"os"
	"runtime/debug"
)

// spendMemory lets garbage grow to four times what is in use before it is collected, where GOGC does not say otherwise.
// Payloads go through a node or gateway in chunks that live for milliseconds: what is in use is little, so at Go's
// default a collection follows every few thousand requests and costs as much as all other work on them. A node's
// --memory stays the limit: near it collections come as often as it takes.
func spendMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
}
