#!/usr/bin/env bash
# Checks that the requirements of a make target are installed, and installs those that are missing.
#
#   deploy/setup/setup.sh [--check] PURPOSE...     PURPOSE: build lint test fuzz demo bench (see needs.txt)
#
# The script looks for programs, not for packages, so it installs nothing that is already there, and a second run takes
# a few milliseconds. Debian packages are installed by apt-get, as root or with sudo; without either, the script prints
# the list to install and fails. Python packages go to .tools/venv, Rust programs to .tools/cargo; both belong to this
# directory only. With --check the script only prints what is missing.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../.." && pwd)
tools=$top/.tools
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
check_only=no
purposes=()

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

for argument in "$@"; do
  case $argument in
    --check) check_only=yes ;;
    build | lint | test | fuzz | demo | bench) purposes+=("$argument") ;;
    *) fail "unknown argument \"$argument\"; usage: setup.sh [--check] build|lint|test|fuzz|demo|bench ..." ;;
  esac
done
[ ${#purposes[@]} -gt 0 ] || fail "no purpose given; usage: setup.sh [--check] build|lint|test|fuzz|demo|bench ..."

wanted() { # wanted PURPOSE,PURPOSE: is one of them requested?
  local purpose
  for purpose in "${purposes[@]}"; do
    [[ ",$1," == *",$purpose,"* ]] && return 0
  done
  return 1
}

# The first python3 that can create a virtual environment.
python_with() { # python_with MODULE: prints the interpreter
  local candidate
  for candidate in python3 /usr/bin/python3; do
    if "$candidate" -c "import venv, $1" >/dev/null 2>&1; then
      printf '%s\n' "$candidate"
      return 0
    fi
  done
  return 1
}

pip_present() { # pip_present NAME==VERSION: installed in .tools/venv? RECORD is what pip writes last.
  local name=${1%%==*} version=${1##*==}
  name=${name//-/_}
  compgen -G "$tools/venv/lib/python3*/site-packages/$name-$version.dist-info/RECORD" >/dev/null
}

cargo_present() { # cargo_present NAME==VERSION: installed in .tools/cargo?
  local name=${1%%==*} version=${1##*==}
  [ -x "$tools/cargo/bin/$name" ] && grep -qsF "\"$name $version " "$tools/cargo/.crates.toml"
}

# Fills missing_packages, missing_pip and missing_cargo, and missing_lines for the user.
look() {
  missing_packages=() missing_pip=() missing_cargo=() missing_lines=()
  local names kind what package
  while read -r names kind what package; do
    if [[ -z $names || $names == \#* ]] || ! wanted "$names"; then continue; fi
    case $kind in
      program) command -v "$what" >/dev/null && continue ;;
      file) compgen -G "$what" >/dev/null && continue ;;
      module) python_with "$what" >/dev/null && continue ;;
      pip) pip_present "$what" && continue || missing_pip+=("$what") ;;
      cargo) cargo_present "$what" && continue || missing_cargo+=("$what") ;;
      *) fail "needs.txt: unknown kind \"$kind\" for $what" ;;
    esac
    case $kind in
      program | file | module)
        [[ " ${missing_packages[*]-} " == *" $package "* ]] || missing_packages+=("$package")
        missing_lines+=("$(printf '%-8s %-38s Debian/Ubuntu package %s' "$kind" "$what" "$package")") ;;
      *) missing_lines+=("$(printf '%-8s %-38s installed here, in .tools' "$kind" "$what")") ;;
    esac
  done <"$here/needs.txt"
}

# The Rust toolchain is the user's: it is checked, never changed.
look_at_rust() {
  local need have
  command -v cargo >/dev/null || fail "cargo is not on PATH. Install Rust (https://rustup.rs). Do not run make under sudo: it asks for root itself"
  need=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$top/Cargo.toml")
  have=$(rustc --version) || fail "rustc does not run"
  have=${have#rustc } have=${have%% *}
  if [ "$(printf '%s\n' "$need" "${have%%-*}" | sort -V | head -n 1)" != "$need" ]; then
    fail "rustc is $have, but Rust $need or newer is required; run: rustup update"
  fi
  if wanted lint; then
    cargo fmt --version >/dev/null 2>&1 || fail "rustfmt is missing; run: rustup component add rustfmt"
    cargo clippy --version >/dev/null 2>&1 || fail "clippy is missing; run: rustup component add clippy"
  fi
}

# Cargo never deletes old artifacts, and a build that fails on a full disk is hard to recognize.
look_at_disk() {
  local dir=${CARGO_TARGET_DIR:-$top} free
  [ -d "$dir" ] || dir=$top
  free=$(df --output=avail -BM "$dir" 2>/dev/null | tail -n 1 | tr -dc 0-9) || return 0
  if [ "${free:-8192}" -lt 8192 ]; then
    say "warning: only $free MiB are free in $dir, and a full build takes about 8,000; \"cargo clean\" removes old artifacts"
  fi
}

install_packages() {
  local by_hand
  by_hand="apt-get install --no-install-recommends ${missing_packages[*]}"
  if ! command -v apt-get >/dev/null; then
    fail "apt-get is not available; install the programs above and try again. On Debian: $by_hand"
  fi
  say "installing Debian packages for ${purposes[*]}: ${missing_packages[*]}"
  if [ "$(id -u)" = 0 ]; then
    bash "$here/apt-install.sh" "${missing_packages[@]}"
  elif command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
    say "asking for root through sudo"
    sudo bash "$here/apt-install.sh" "${missing_packages[@]}"
  else
    fail "not root, and sudo is not available without a password. As root, run: $by_hand"
  fi
}

install_pip() {
  local python
  # A virtual environment stops working when its interpreter is removed.
  if ! "$tools/venv/bin/python" -c pass >/dev/null 2>&1; then
    python=$(python_with ensurepip) || fail "no python3 that can create a virtual environment; install python3 and python3-venv"
    say "creating a Python environment in .tools/venv"
    rm -rf "$tools/venv"
    "$python" -m venv "$tools/venv"
  fi
  say "installing from PyPI into .tools/venv: ${missing_pip[*]}"
  "$tools/venv/bin/python" -m pip install --no-input --disable-pip-version-check --only-binary :all: --no-deps \
    --progress-bar off "${missing_pip[@]}" >&2 ||
    fail "pip cannot install ${missing_pip[*]} (is there a network, and a wheel for this Python and processor?)"
}

install_cargo() { # unoptimised: built in a minute instead of several, and fast enough
  local pinned
  for pinned in "${missing_cargo[@]}"; do
    say "building ${pinned/==/ } from crates.io into .tools/cargo (a minute or two, once)"
    env -u CARGO_TARGET_DIR cargo install --locked --debug --config 'profile.dev.debug=false' --force \
      --root "$tools/cargo" "${pinned%%==*}" --version "${pinned##*==}" >&2 ||
      fail "cargo install ${pinned%%==*} failed"
  done
}

if wanted build,lint; then
  look_at_rust
  look_at_disk
fi
look
[ ${#missing_lines[@]} -gt 0 ] || exit 0

say "missing for ${purposes[*]}:"
printf '  %s\n' "${missing_lines[@]}" >&2
[ $check_only = no ] || exit 1

started=$SECONDS
mkdir -p "$tools"
exec 9>"$tools/.setup-lock"
flock 9 2>/dev/null || true # if two targets start at once, the second waits; flock may be absent (not Linux)
look
[ ${#missing_packages[@]} = 0 ] || install_packages
[ ${#missing_pip[@]} = 0 ] || install_pip
[ ${#missing_cargo[@]} = 0 ] || install_cargo
look
if [ ${#missing_lines[@]} -gt 0 ]; then
  printf '  %s\n' "${missing_lines[@]}" >&2
  fail "still missing after installation"
fi
say "ready for ${purposes[*]} ($((SECONDS - started)) s)"
