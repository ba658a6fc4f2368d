// Package migrate is the move of a group's primary as its nodes see it: the target's steps as a pure state machine with
// the loop that carries them out, and the rules by which the source seals, reopens and retires.
//
// The manager registers the move and switches the paths (S0–S2); from then on the target drives (S3–S8, the document's
// Figs. 8A, 8B), because it holds the hosts' requests and must be able to let go of them with everybody else dead:
//
//	registered → through → ordered → adopted → opened → drained → single → filled → deregistered
//	                          │         │
//	                          └────┬────┘
//	                            refused → returned
//
// Two records make sure that no two nodes serve in one instant. The target opens epoch e+1 only after the store's one
// compare-and-swap has named it, and only if it has not durably refused e+1; the source goes on in e+2 only on the
// target's durable refusal (or on the opposite swap, after which the target's can never win). Each record is on disk
// before anything acts on it, so a process that dies between the two finds at its restart what it had promised:
//
//   - dead before "opened" is on disk: the target asks source and store again; hand-over and swap are idempotent.
//   - dead after it: the target can only go forward, and opens the row of e+1 if its log does not have it yet.
//   - dead after "refused" is on disk: it can only go back, and tells the source again.
//
// What the package does not do: it holds no requests, opens no logs and dials nobody; Ops does that.
package migrate
