#!/usr/bin/env bash
# Runs go test with the arguments given. When something fails, the failed tests and what they said stand once more at the
# end, where a reader of a cut log finds them.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p build
log=$(mktemp build/test.XXXXXX.log)
trap 'rm -f "$log"' EXIT
if "${GO:-go}" test "$@" 2>&1 | tee "$log"; then exit 0; fi
echo
# Every test that runs beside a data race fails with it: only the report says where it is.
awk '/WARNING: DATA RACE/ { report = 1 } /^=+$/ { report = 0 } report && NF && shown < 60 { print; shown++ }' "$log" | cut -c1-200
echo "=== what failed, from the above:"
grep -E '^ *--- FAIL|^FAIL|^panic:|^fatal error:|DATA RACE|^ +[A-Za-z0-9_]+_test\.go:[0-9]+:|SIGQUIT|test timed out' "$log" | cut -c1-400 | tail -n 60
exit 1
