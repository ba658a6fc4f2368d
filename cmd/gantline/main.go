// Command gantline is every role and every tool of Gantline in one binary.
package main

import (
	"os"

	"gantline/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:])) }
