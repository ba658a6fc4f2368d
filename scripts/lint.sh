#!/usr/bin/env bash
# Runs golangci-lint with .golangci.yml, building the pinned version into build/ once. Not part of `make test`: building
# the linter takes longer than the tests.
set -euo pipefail
cd "$(dirname "$0")/.."
version=v2.15.0
linter=build/golangci-lint-$version
if [ ! -x "$linter" ]; then
	mkdir -p build
	GOBIN=$PWD/build GOFLAGS=-buildvcs=false go install "github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$version"
	mv build/golangci-lint "$linter"
fi
exec "$linter" run ./...
