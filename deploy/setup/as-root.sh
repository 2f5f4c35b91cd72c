#!/usr/bin/env bash
# Runs a program as root: directly if the user is root, otherwise through sudo.
#
#   deploy/setup/as-root.sh COMMAND...      runs it, passing on PATH and WEFT_*, CARGO_*, RUST_*, PROPTEST_* and CI
#   deploy/setup/as-root.sh --check         checks that root is available and that root may create network namespaces
#   deploy/setup/as-root.sh --test COMMAND  a cargo runner: root for the tests of weft-e2e, and for those of the control
#                                           plane if ignored tests run too (one mounts a file system); otherwise the user
set -euo pipefail

fail() { printf 'error: %s\n' "$*" >&2; exit 1; }
why="network namespaces and nftables rules need root"

run() {
  if [ "$(id -u)" = 0 ]; then exec "$@"; fi
  local name value passed=()
  while IFS='=' read -r -d '' name value; do
    case $name in
      PATH | CI | TERM | WEFT_* | CARGO_* | RUST_* | PROPTEST_*) passed+=("$name=$value") ;;
    esac
  done < <(env -0)
  exec sudo env "${passed[@]}" "$@"
}

case ${1-} in
  "") fail "as-root.sh: no command given" ;;
  --check)
    if [ "$(id -u)" = 0 ]; then
      sudo=()
    else
      command -v sudo >/dev/null || fail "$why; run make as root, or install sudo and allow it to $(id -un)"
      if ! sudo -n true 2>/dev/null; then
        [ -t 0 ] || fail "$why; sudo requires a password and there is no terminal: run make as root"
        echo "$why: asking through sudo" >&2
        sudo -v || fail "$why; sudo refused"
      fi
      sudo=(sudo)
    fi
    if ! "${sudo[@]}" unshare --net --mount true 2>/dev/null; then
      fail "$why, but root may not create network namespaces here; start a container with --privileged"
    fi ;;
  --test)
    shift
    case "${CARGO_PKG_NAME-} $* " in
      "weft-e2e "* | "weft-control-plane "*" --include-ignored "*) run "$@" ;;
      *) exec "$@" ;;
    esac ;;
  *) run "$@" ;;
esac
