#!/usr/bin/env bash
# All tests, the end-to-end ones beside the others: they mostly wait for kubelets, which leaves a core to the rest.
# Usage: tests/run-all.sh PYTHON
set -u
python=$1
log=$(mktemp)
"$python" -m pytest -m e2e --durations=10 >"$log" 2>&1 &
e2e=$!
trap 'kill "$e2e" 2>/dev/null; wait; rm -f "$log"' EXIT
"$python" -m pytest -m "not e2e" --durations=10
others=$?
wait "$e2e"
ended=$?
cat "$log"
[ "$others" -eq 0 ] || exit "$others"
exit "$ended"
