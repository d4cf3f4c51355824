#!/usr/bin/env bash
# Makes sure that the nested lab can run; quick when all is there. Everything it makes lies in the cache folder.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
bash "$here/../../lab/setup/ensure.sh" --with-qemu-10
cache="${CAIRN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cairn}/lab"
exec 9>"$cache/.lock-nested"
flock 9
for suite in bookworm bookworm-backports; do bash "$here/build-l1.sh" "$cache" "$suite"; done
