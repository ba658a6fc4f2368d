// Package cli is the gantline command: one file per verb. It turns flags into requests of the manager's HTTP interface and
// answers into tables, JSON or YAML; it decides nothing that the manager decides. `serve` wires the roles together: it is
// the only place where processes are assembled from their packages.
//
// An error's kind becomes the exit code in one switch (exitCode).
package cli
