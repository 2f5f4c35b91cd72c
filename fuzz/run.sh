#!/usr/bin/env bash
# Fuzzes with libFuzzer, on stable Rust: `make fuzz` and `make test-full` call this.
#
#   fuzz/run.sh [--seconds N] [--jobs N] [TARGET...]   fuzz the targets (default: all), N seconds each (60), N at a time (2)
#   fuzz/run.sh --again TARGET FILE                    run one input, such as an artifact
#   fuzz/run.sh --seed TARGET FILE NAME                minimise a failing input and keep it as the seed NAME
#   fuzz/run.sh --list                                 names of the targets
#
# What the fuzzer finds interesting goes to fuzz/work/TARGET, a failing input to fuzz/artifacts/TARGET; neither is committed.
# The committed seeds in fuzz/corpus/TARGET are only read.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$top"
out=${CARGO_TARGET_DIR:-$top/target}/fuzz
seconds=60 jobs=2 again="" seed=""
targets=()

say() { printf 'fuzz: %s\n' "$*"; }
fail() { printf 'fuzz: error: %s\n' "$*" >&2; exit 1; }
known() { basename -s .rs fuzz/libfuzzer/src/bin/*.rs; }

while [ $# -gt 0 ]; do
  case $1 in
    --seconds) seconds=${2:?} && shift ;;
    --jobs) jobs=${2:?} && shift ;;
    --list) known && exit ;;
    --again) again=${3:?} && targets=("${2:?}") && shift 2 ;;
    --seed) again=${3:?} && seed=${4:?} && targets=("${2:?}") && shift 3 ;;
    -*) fail "unknown option \"$1\"; the first lines of fuzz/run.sh list the options" ;;
    *) targets+=("$1") ;;
  esac
  shift
done
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(known)
for target in "${targets[@]}"; do
  [ -f "fuzz/libfuzzer/src/bin/$target.rs" ] || fail "no target \"$target\"; there are: $(known | tr '\n' ' ')"
done

# libFuzzer is C++ and comes as sources in libfuzzer-sys. All else works with stable Rust: our code has no `unsafe`, so the
# address sanitizer, which needs nightly, has little to find.
command -v "${CXX:-c++}" >/dev/null || fail "no C++ compiler: install g++ (Debian/Ubuntu package g++), or set CXX"
triple=$(rustc -vV | sed -n 's/^host: //p')
flags="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
flags+=" -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
flags+=" -Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0"
# The workspace's versions, so that what is fuzzed is what is shipped; cargo adds libfuzzer-sys, whose version is pinned.
cp Cargo.lock fuzz/libfuzzer/Cargo.lock
bins=()
for target in "${targets[@]}"; do bins+=(--bin "$target"); done
say "building ${targets[*]}"
# With --target, build scripts and macros are not instrumented.
RUSTFLAGS=$flags cargo build --release --manifest-path fuzz/libfuzzer/Cargo.toml --target "$triple" --target-dir "$out" \
  "${bins[@]}"
programs=$out/$triple/release

if [ -n "$seed" ]; then
  mkdir -p fuzz/work
  small=fuzz/work/minimised
  cp "$again" "$small"
  "$programs/${targets[0]}" -minimize_crash=1 -max_total_time="$seconds" -exact_artifact_path="$small" "$again" \
    >fuzz/work/minimise.log 2>&1 || true
  mv "$small" "fuzz/corpus/${targets[0]}/$seed"
  say "kept $(wc -c <"fuzz/corpus/${targets[0]}/$seed") bytes as fuzz/corpus/${targets[0]}/$seed; cargo test -p weft-fuzz replays it"
  exit
elif [ -n "$again" ]; then
  exec "$programs/${targets[0]}" "$again"
fi

fuzz() { # fuzz TARGET: prints one line; the fuzzer's own output goes to a log
  local target=$1 log=fuzz/work/$1.log status=0 dictionary=()
  mkdir -p "fuzz/work/$target" "fuzz/artifacts/$target"
  [ ! -f "fuzz/dictionaries/$target" ] || dictionary=("-dict=fuzz/dictionaries/$target")
  "$programs/$target" -max_total_time="$seconds" -max_len=8192 -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 \
    -verbosity=1 "${dictionary[@]}" -artifact_prefix="fuzz/artifacts/$target/" "fuzz/work/$target" "fuzz/corpus/$target" \
    >"$log" 2>&1 || status=$?
  local cover rate
  cover=$(grep -oE 'cov: [0-9]+ ft: [0-9]+' "$log" | tail -n 1)
  rate=$(sed -n 's/^stat::average_exec_per_sec: *//p' "$log")
  if [ $status = 0 ]; then
    say "$target: OK, ${rate:-?} runs a second, $cover"
    return 0
  fi
  say "$target: FAILED, see $log"
  local input
  input=$(grep -oE 'fuzz/artifacts/[^ ]+' "$log" | tail -n 1)
  if [ -n "$input" ]; then
    grep -aE 'panicked at|^assertion|^  (left|right):|ERROR: libFuzzer' -A 1 "$log" | head -n 12 | cut -c 1-400
    say "the input is $input. Run it again:    fuzz/run.sh --again $target $input"
    say "Keep it as a seed, minimised:         fuzz/run.sh --seed $target $input a-name-for-the-behaviour"
  fi
  return 1
}

failed=0 running=0
for target in "${targets[@]}"; do
  if [ $running -ge "$jobs" ]; then
    wait -n || failed=1
    running=$((running - 1))
  fi
  fuzz "$target" &
  running=$((running + 1))
done
while [ $running -gt 0 ]; do
  wait -n || failed=1
  running=$((running - 1))
done
exit $failed
