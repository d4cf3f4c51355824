#!/usr/bin/env bash
# What to run before each commit: types, style and unit tests. eslint and prettier look only at files that have changed since they were found
# good; `npm run lint` looks at all of them.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=node_modules/.cache
bash test/build.sh
{ npx depcruise src adapters && npx eslint --cache --cache-strategy content --cache-location "$cache/eslint/" . && npx prettier --check --log-level warn --cache --cache-location "$cache/prettier" .; } &
linting=$!
status=0
NODE_OPTIONS="--experimental-vm-modules --no-warnings ${NODE_OPTIONS:-}" npx jest --maxWorkers=2 dist/test/unit/ || status=$?
wait "$linting" || status=$?
exit "$status"
