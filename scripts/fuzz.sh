#!/usr/bin/env bash
# Runs every fuzz target for the time given, scripts/fuzz.sh 30s, or for so many inputs, scripts/fuzz.sh 1000x. What it
# finds is kept under testdata/fuzz.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:?usage: scripts/fuzz.sh TIME}

count=0
while IFS=: read -r file target; do
	echo "--- fuzz $target in $(dirname "$file") for $time"
	go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "./$(dirname "$file")"
	count=$((count + 1))
done < <(find . -name '*_test.go' -not -path './build/*' -printf '%P\n' | sort |
	xargs -r grep -H -o -E '^func Fuzz[A-Za-z0-9_]*' | sed 's/:func /:/')
echo "$count fuzz targets, $time each"
