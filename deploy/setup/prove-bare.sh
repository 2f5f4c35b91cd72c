#!/usr/bin/env bash
# Proves that a fresh clone works on a bare machine: creates a minimal Debian or Ubuntu with debootstrap, puts a fresh
# clone of this repository's HEAD and the Rust toolchain into it, and runs commands there.
#
#   deploy/setup/prove-bare.sh [--suite SUITE] [--mirror URL] [--keyring FILE] [--dir DIR] [--keep] [--registry] [--user] [COMMAND...]
#
#   --suite     bookworm (default), trixie, noble ...
#   --mirror    default: http://deb.debian.org/debian, for Ubuntu suites http://archive.ubuntu.com/ubuntu
#   --keyring   keys that sign the suite (Ubuntu on Debian: ubuntu-archive-keyring.gpg of the package ubuntu-keyring)
#   --dir       directory of the system (default: a new directory in /var/tmp)
#   --keep      keep the directory; with --dir the next run uses it again, with a new clone
#   --registry  copy this machine's crates.io cache into it, to avoid the download
#   --user      run the commands as an ordinary user without sudo instead of root
#   COMMAND     one argument each, run by bash in the clone; default: "make test" "make demo-check"
#
# The system contains debootstrap's minbase with make, this machine's apt proxy and certificate settings, the Rust
# toolchain (~/.rustup and ~/.cargo/bin, read-only) and the clone. `make` installs everything else. The system shares
# this machine's kernel and network. Needs root and debootstrap.
#
# All mounts are in a mount namespace of its own, whose processes end with this script: nothing stays mounted, even
# after kill -9, and the directory has no mounts when it is removed.
set -euo pipefail

say() { printf 'bare: %s\n' "$*" >&2; }
fail() { printf 'bare: error: %s\n' "$*" >&2; exit 1; }

# The second half: in the new mount and pid namespace.
if [ "${1-}" = --inside ]; then
  root=$2 user=$3
  shift 3
  mount --make-rprivate /
  mount --bind "$root" "$root"
  mount -t proc proc "$root/proc"
  mount --rbind /sys "$root/sys"
  mount --rbind /dev "$root/dev"
  mount -t tmpfs tmpfs "$root/run"
  mkdir -p "$root/run/lock"
  for part in .rustup .cargo/bin; do
    mkdir -p "$root/opt/rust/$part"
    mount --bind "$HOME/$part" "$root/opt/rust/$part"
    mount -o remount,bind,ro "$root/opt/rust/$part"
  done
  # The bare system becomes the root of this mount namespace, not only of a process: the kernel refuses user namespaces,
  # which some tests create, to processes in a chroot.
  cd "$root"
  pivot_root . mnt
  cd /
  umount --lazy /mnt
  # Of this machine's environment, only the variables that the network needs.
  variables=(HOME="/home/$user" USER="$user" LANG=C.UTF-8 TERM=dumb CI=true CARGO_HOME="/home/$user/.cargo"
    RUSTUP_HOME=/opt/rust/.rustup PATH=/opt/rust/.cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
  for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY PIP_CERT PIP_INDEX_URL SSL_CERT_FILE \
    CARGO_HTTP_CAINFO CARGO_HTTP_PROXY RUSTUP_AUTO_INSTALL RUSTUP_TOOLCHAIN; do
    if [ -n "${!name-}" ]; then variables+=("$name=${!name}"); fi
  done
  status=0
  for command in "$@"; do
    say "running: $command"
    started=$SECONDS
    outcome=passed
    chroot --userspec="$user" / /usr/bin/env -i "${variables[@]}" bash -c "cd /home/$user/weft && $command" ||
      { status=1; outcome=FAILED; }
    say "$outcome in $((SECONDS - started)) s: $command"
    [ $status = 0 ] || break
  done
  exit $status
fi

suite=bookworm mirror="" keyring="" dir="" keep=no registry=no user=root
while [ $# -gt 0 ]; do
  case $1 in
    --suite) suite=${2:?--suite needs a name}; shift ;;
    --mirror) mirror=${2:?--mirror needs a URL}; shift ;;
    --keyring) keyring=${2:?--keyring needs a file}; shift ;;
    --dir) dir=${2:?--dir needs a path}; shift ;;
    --keep) keep=yes ;;
    --registry) registry=yes ;;
    --user) user=newcomer ;;
    --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    -*) fail "unknown option $1; see --help" ;;
    *) break ;;
  esac
  shift
done
[ $# -gt 0 ] || set -- "make test" "make demo-check"
[ "$(id -u)" = 0 ] || fail "must run as root"
command -v debootstrap >/dev/null || fail "debootstrap is not installed (apt-get install debootstrap)"
[ -d "$HOME/.rustup" ] && [ -x "$HOME/.cargo/bin/cargo" ] || fail "no Rust toolchain in $HOME/.rustup and $HOME/.cargo/bin"

case $suite in
  jammy | noble | questing | resolute) family=ubuntu components=main,universe mirror=${mirror:-http://archive.ubuntu.com/ubuntu} ;;
  *) family=debian components=main mirror=${mirror:-http://deb.debian.org/debian} ;;
esac
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
dir=${dir:-$(mktemp -d /var/tmp/weft-bare-XXXXXX)}
mkdir -p "$dir"
# It becomes the root directory, which all users must be able to traverse: tests run programs as other users.
chmod 755 "$dir"
dir=$(realpath "$dir")
[ "$dir" != / ] || fail "--dir must not be /"

inside=""
clean_up() {
  if [ -n "$inside" ]; then # unshare takes all processes of its namespace with it
    kill -KILL "$inside" 2>/dev/null || true
    wait "$inside" 2>/dev/null || true
  fi
  if [ $keep = yes ]; then
    say "left in place: $dir"
  elif grep -q " $dir/" /proc/self/mounts; then
    say "something is mounted below $dir; not removing it"
  else
    rm -rf --one-file-system "$dir"
  fi
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if [ ! -e "$dir/.debootstrap-done" ]; then
  say "debootstrap $suite from $mirror into $dir"
  # A suite that is newer than this debootstrap uses the script of an older one.
  script=/usr/share/debootstrap/scripts/$suite
  if [ -e "$script" ]; then :; elif [ $family = ubuntu ]; then script=${script%/*}/gutsy; else script=${script%/*}/sid; fi
  debootstrap --variant=minbase --include=make --components="$components" \
    --force-check-gpg ${keyring:+--keyring="$keyring"} "$suite" "$dir" "$mirror" "$script" >"$dir.log" 2>&1 ||
    { tail -n 5 "$dir.log" >&2; fail "debootstrap failed; see $dir.log"; }
  rm -f "$dir.log"
  {
    echo "deb $mirror $suite ${components/,/ }"
    echo "deb $mirror $suite-updates ${components/,/ }"
    if [ $family = debian ]; then echo "deb ${mirror%/debian}/debian-security $suite-security main"; fi
  } >"$dir/etc/apt/sources.list"
  # How apt reaches its mirror from this machine: proxies and certificates, no package preferences.
  grep -lsE 'Acquire::' /etc/apt/apt.conf.d/* | while read -r file; do
    if ! grep -qE 'IndexTargets|Post-Invoke|GzipIndexes|Languages' "$file"; then cp "$file" "$dir/etc/apt/apt.conf.d/"; fi
  done
  mkdir -p "$dir/usr/local/share/ca-certificates"
  cp -r /usr/local/share/ca-certificates/. "$dir/usr/local/share/ca-certificates/"
  touch "$dir/.debootstrap-done"
fi
cp -L /etc/resolv.conf "$dir/etc/resolv.conf"
cp -L /etc/hosts "$dir/etc/hosts"

mkdir -p "$dir/home/$user"
rm -rf "${dir:?}/home/$user/weft"
git clone --quiet --no-hardlinks "$top" "$dir/home/$user/weft"
say "fresh clone of $(git -C "$dir/home/$user/weft" log -1 --format='%h %s')"
if [ -n "$(git -C "$top" status --porcelain)" ]; then say "note: the clone does not contain uncommitted changes of $top"; fi
if [ $registry = yes ]; then
  say "copying the crates.io cache of this machine"
  mkdir -p "$dir/home/$user/.cargo"
  cp -r "$HOME/.cargo/registry" "$dir/home/$user/.cargo/"
fi
if [ "$user" != root ]; then
  chroot "$dir" id "$user" >/dev/null 2>&1 || chroot "$dir" useradd --no-create-home --home-dir "/home/$user" --shell /bin/bash "$user"
  chroot "$dir" chown -R "$user:" "/home/$user"
fi

setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child \
  "${BASH_SOURCE[0]}" --inside "$dir" "$user" "$@" </dev/null &
inside=$! status=0
wait "$inside" || status=$?
inside=""
exit $status
