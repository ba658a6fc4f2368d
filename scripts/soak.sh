#!/usr/bin/env bash
# Repeats the whole-system tests, in a new order and with new seeds each time, and the demo, until the time is over or
# one of them fails: scripts/soak.sh 8h (s, m and h are understood). Each round's output is kept until the next passed.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:?usage: scripts/soak.sh TIME}
case $time in
*h) seconds=$((${time%h} * 3600)) ;;
*m) seconds=$((${time%m} * 60)) ;;
*s) seconds=${time%s} ;;
*) echo "not a time: $time (examples: 90s, 30m, 8h)" >&2; exit 2 ;;
esac

mkdir -p build
export GANTLINE_BIN=$PWD/bin/gantline
end=$((SECONDS + seconds))
round=0
while [ "$SECONDS" -lt "$end" ]; do
	round=$((round + 1))
	packages=$(go list ./test/... 2>/dev/null || true)
	{
		if [ -n "$packages" ]; then
			go test -count=1 -p 1 -shuffle=on -timeout 30m $packages
		fi
		"$GANTLINE_BIN" demo --json
	} >build/soak.log 2>&1 || { cat build/soak.log; echo "soak: round $round failed; its output is in build/soak.log" >&2; exit 1; }
	echo "soak: round $round passed, $((end - SECONDS)) s left"
done
