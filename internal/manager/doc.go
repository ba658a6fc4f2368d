// Package manager is the one door of the control plane: the HTTP/JSON API, the operations behind it, and the loops that
// carry moves on and tell nodes and gateways what has changed. It never stands in the data path: hosts are served and
// copying goes on while it is away.
//
//	CLI, page ──HTTP──▶ api ─▶ operations ─▶ control.Store
//	                               │  ▲
//	nodes ◀──calls (wire)──────────┘  └── sync, decide (HTTP) ◀── nodes
//	gateways ◀── routes, long poll ────── sync (HTTP) ◀── gateways
//
// # Order of every change, and why
//
// A command may die with its manager between any two steps. Each operation is ordered so that the same command, given
// again, completes it, and so that nothing which the store names is missing at a node:
//
//   - volume, journal create: node first, then store. The node owns what is on its disks and its create is idempotent
//     by name and size; what the store names therefore exists.
//   - volume, journal delete: node first, then store, so the store names it until it is gone. "Gone already" is success.
//   - group create, pair add: store first, then the nodes. The manager owns names, numbers and membership; a number that
//     a node has seen must never be given away again. If a node refuses, the change is taken back (with a higher
//     revision); if a node is away, it is told when it registers again.
//   - group delete: nodes first (primary, then secondary), then store: as long as the store knows the group the command
//     can be repeated.
//   - suspend, resume: store first, then the primary: the wish is durable, and is told again when the node returns.
//   - vvol: store only; then the gateways confirm.
//   - move: see move.go.
//
// Nodes and gateways are told by state, not by message: the pusher compares what each was told last with what holds now.
package manager
