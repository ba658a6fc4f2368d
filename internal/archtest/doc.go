// Package archtest checks that packages import only what the architecture lets them (docs/architecture.md). It has
// nothing but tests: the rules, each with its reason, in rules_test.go; the checker, and a test that it can fail, in
// graph_test.go.
package archtest
