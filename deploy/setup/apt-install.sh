#!/usr/bin/env bash
# Installs Debian packages without prompts, and without starting the daemons that some of them contain.
#
#   deploy/setup/apt-install.sh PACKAGE...      (as root; called by setup.sh)
#
# Daemons: during the installation a policy-rc.d answers "not allowed" (101) to every start; the previous one is
# restored afterwards, also after an interrupted run. Known daemons that this run installed are also disabled, so that
# they do not start at the next boot: the tests run their own.
# The package lists are fetched only if apt does not know a package or cannot download it.
set -euo pipefail

[ "$(id -u)" = 0 ] || { echo "apt-install: error: must run as root" >&2; exit 1; }
[ $# -gt 0 ] || { echo "apt-install: error: no package given" >&2; exit 1; }

export DEBIAN_FRONTEND=noninteractive DEBIAN_PRIORITY=critical NEEDRESTART_MODE=l LC_ALL=C.UTF-8
policy=/usr/sbin/policy-rc.d
saved=$policy.before-weft
mark='# weft: temporary, during package installation'
daemons=(nginx postgresql redis-server)

restore_policy() {
  if [ -e "$saved" ]; then
    mv -f "$saved" "$policy"
  elif grep -qsxF "$mark" "$policy"; then
    rm -f "$policy"
  fi
}

forbid_starts() {
  if [ -e "$policy" ]; then cp -p "$policy" "$saved"; fi
  printf '#!/bin/sh\n%s\nexit 101\n' "$mark" >"$policy.new-weft"
  chmod 755 "$policy.new-weft"
  mv -f "$policy.new-weft" "$policy"
}

quiet_apt() {
  apt-get -qq -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 \
    -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold "$@" </dev/null
}

installed() { [ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null)" = "ii " ]; }

exec 8>/run/weft-apt.lock
flock 8
restore_policy # of an interrupted run
trap restore_policy EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
forbid_starts

was_there=" "
for daemon in "${daemons[@]}"; do
  if installed "$daemon"; then was_there+="$daemon "; fi
done

# Prints apt's status lines on its file descriptor 3 (stage:package:percent:text) as a few lines of progress.
progress() {
  local stage package percent text shown=-20
  while IFS=: read -r stage package percent text; do
    case $stage in
      dlstatus) [ $shown -ge 0 ] || { echo "apt-install: downloading"; shown=0; } ;;
      pmstatus)
        percent=${percent%%.*}
        if [[ $percent =~ ^[0-9]+$ ]] && [ "$percent" -ge $((shown + 20)) ]; then
          shown=$percent
          echo "apt-install: $percent % $text"
        fi ;;
    esac
  done
}

log=$(mktemp)
trap 'restore_policy; rm -f "$log"' EXIT

install() {
  local status=0
  quiet_apt -o APT::Status-Fd=3 install --no-install-recommends "$@" 3> >(progress) >"$log" 2>&1 || status=$?
  wait $! || true # all progress is printed
  return $status
}

updated=no
update() {
  updated=yes
  echo "apt-install: fetching the package lists"
  quiet_apt update
}

# Required after an interrupted installation; otherwise it does nothing.
dpkg --force-confdef --force-confold --configure -a </dev/null >/dev/null 2>&1 || true
if ! quiet_apt --simulate install --no-install-recommends "$@" >/dev/null 2>&1; then update; fi
installed_all=yes
install "$@" || installed_all=no
if [ $installed_all$updated = nono ]; then
  update # the lists were outdated: the mirror no longer has the packages that they name
  if install "$@"; then installed_all=yes; fi
fi
if [ $installed_all = no ]; then
  tail -n 30 "$log" >&2
  echo "apt-install: error: apt-get cannot install: $*" >&2
  exit 1
fi

for daemon in "${daemons[@]}"; do
  if [[ $was_there != *" $daemon "* ]] && installed "$daemon" && command -v update-rc.d >/dev/null; then
    if update-rc.d "$daemon" disable >/dev/null 2>&1; then
      echo "apt-install: $daemon is installed but not started, now or at boot; enable it with: systemctl enable --now $daemon"
    fi
  fi
done
