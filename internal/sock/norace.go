//go:build !race

package sock

import "golang.org/x/sys/unix"

func received([]byte) {}

func sends([]unix.Iovec) {}
