#!/usr/bin/env bash
# Checks the dependency tree against deny.toml: bans, licences and sources always, advisories if their database
# (github.com/rustsec/advisory-db) can be fetched. Without network it prints that they were not checked, and passes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PATH=$PWD/.tools/cargo/bin:$PATH

echo "cargo deny check bans licenses sources"
cargo deny --workspace --log-level warn check bans licenses sources

fetched=$(mktemp)
trap 'rm -f "$fetched"' EXIT
if timeout 90 cargo deny --log-level error fetch db >"$fetched" 2>&1 </dev/null; then
  echo "cargo deny check advisories"
  cargo deny --workspace --log-level warn check --disable-fetch advisories
else
  echo "advisories NOT checked: the RustSec database could not be fetched ($(grep -v '^ *$' "$fetched" | tail -n 1 | sed 's/^ *//'))"
fi
