#!/usr/bin/env bash
# Runs a program as root: directly when we are root, through sudo otherwise.
#
#   deploy/setup/as-root.sh COMMAND...      runs it, passing on PATH and WEFT_*, CARGO_*, RUST_*, PROPTEST_* and CI
#   deploy/setup/as-root.sh --check         only asks: can we be root here, and may root make network namespaces?
#   deploy/setup/as-root.sh --test COMMAND  a cargo runner: root for the tests of weft-e2e, and for the control plane's
#                                           where the ignored ones run too (one mounts a file system); as we are for all others
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
        [ -t 0 ] || fail "$why; sudo wants a password and there is no terminal to ask on: run make as root"
        echo "$why: asking through sudo" >&2
        sudo -v || fail "$why; sudo refused"
      fi
      sudo=(sudo)
    fi
    if ! "${sudo[@]}" unshare --net --mount true 2>/dev/null; then
      fail "$why, and root may not make network namespaces here; in a container, start it with --privileged"
    fi ;;
  --test)
    shift
    case "${CARGO_PKG_NAME-} $* " in
      "weft-e2e "* | "weft-control-plane "*" --include-ignored "*) run "$@" ;;
      *) exec "$@" ;;
    esac ;;
  *) run "$@" ;;
esac
