#!/usr/bin/env python3
"""Generates proxy/layout.ld: the functions of weft-proxy that are placed side by side at the beginning of the program.

    bench/layout.py PROGRAMS OUTPUT      (`make layout` builds the programs, with their symbols, and calls this)

Runs scenarios of the bench with the proxy under callgrind, records the executed functions and those executed repeatedly, and
writes the shortest patterns for their names. Names are in Rust's v0 mangling, without the parts that differ between builds
(hashes of crates and references into the name itself). A pattern may also match other functions if they are few bytes.
"""

import collections
import os
import pathlib
import re
import subprocess
import sys
import tempfile

# Start and HTTP/1; then other protocols; then a control plane.
SCENARIOS = [["http1-1"], ["http2-32", "grpc-stream", "tcp-bulk"], ["churn"]]
# For the first STEADY of these, repeatedly executed functions are separate: those in most parts of a profile with at least PARTS.
STEADY, PARTS = 2, 8
# Unexecuted code that a pattern may match: bytes, or a share of the executed bytes.
EXTRA_BYTES, EXTRA_SHARE = 128, 0.1
# The profile is written every BLOCKS basic blocks, because the bench ends its programs with SIGKILL.
BLOCKS = 5_000_000

HEAD = """\
/* Which functions stand first in the program: those that a proxy executes for each HTTP/1 request, then with other protocols;
   then those that it executes once, when it starts from a file, and with a control plane. A CPU has to look up each page that
   it executes, and the kernel maps the program 64 KiB at a time, so what is executed is not to lie scattered. Made by
   `make layout` (bench/layout.py). A name that no longer exists costs nothing, and one that is missing some time or memory. */
SECTIONS
{
  .text.weft : {
"""
TAIL = """\
  }
}
INSERT BEFORE .text;
"""


def sizes_of(program):
    """Size of each function in bytes, by its name in the program."""
    listing = subprocess.run(["nm", "--print-size", "--radix=d", program], capture_output=True, text=True, check=True)
    fields = (line.split() for line in listing.stdout.splitlines())
    return {name: int(size) for _, size, kind, name in (f for f in fields if len(f) == 4) if kind in "tTwW"}


def executed(programs, scenarios):
    """Names of the functions that the proxies executed, and of those that one of them executed in most parts of its profile."""
    names, steady = set(), set()
    with tempfile.TemporaryDirectory(prefix="weft-layout-") as scratch:
        scratch = pathlib.Path(scratch)
        (scratch / "weft-control-plane").symlink_to(programs / "weft-control-plane")
        wrapper = scratch / "weft-proxy"
        wrapper.write_text(
            f"#!/bin/sh\nexec valgrind --tool=callgrind --demangle=no --dump-every-bb={BLOCKS} "
            f"--callgrind-out-file={scratch}/profile.%p {programs}/weft-proxy \"$@\"\n"
        )
        wrapper.chmod(0o755)
        for scenario in scenarios:
            print(f"layout: {scenario} ...", file=sys.stderr, flush=True)
            command = [programs / "weft-bench", "--only", "weft", "--scenario", scenario, "--rounds", "1", "--seconds", "8"]
            run = subprocess.run(command, env={**os.environ, "WEFT_BIN": str(scratch)}, capture_output=True, text=True)
            if run.returncode:
                sys.exit(f"layout: {scenario} failed:\n{run.stderr}")
        parts = collections.defaultdict(list)
        for profile in scratch.glob("profile.*.*"):
            found = re.findall(r"^c?fn=\(\d+\) (.*?)(?:'\d+)?$", profile.read_text(errors="replace"), re.MULTILINE)
            parts[profile.stem].append(set(found))
        for process in parts.values():
            count = collections.Counter(name for part in process for name in part)
            names |= count.keys()
            steady |= {name for name, times in count.items() if times > max(PARTS, len(process)) / 2}
    return names, steady


def pattern(name):
    """What the linker is told to look for: the name without what differs from build to build."""
    name = re.sub(r"\.llvm\.\d+$", "", name)
    if name.startswith("_R"):
        name = re.sub(r"\.(\d+|cold.*)$", "", name)
        name = re.sub(r"Cs[0-9A-Za-z]{6,13}_", "Cs*_", name)
        name = re.sub(r"B[0-9A-Za-z]{0,3}_", "B*_", name)
    else:
        name = re.sub(r"\.(part|constprop|isra|cold|\d).*$", "*", name)
    return name.replace("$", "?")


def shortest(wanted, others):
    """The shortest prefixes, as patterns, that take in all of `wanted` and little of `others` (bytes by name)."""
    found = []

    def split(names, rest, depth):
        extra = sum(others[name] for name in rest)
        if depth >= 10 and (extra <= EXTRA_BYTES or extra <= EXTRA_SHARE * sum(wanted[name] for name in names)):
            found.append(names[0][:depth] + "*")
            return
        groups = collections.defaultdict(lambda: ([], []))
        for index, some in enumerate((names, rest)):
            for name in some:
                groups[name[depth : depth + 1]][index].append(name)
        for letter, (some, beside) in sorted(groups.items()):
            if not letter:
                found.extend(some)
            elif some:
                split(some, beside, depth + 1)

    split(sorted(wanted), sorted(others), 0)
    return [re.sub(r"\*+", "*", text) for text in found]


def main():
    programs, output = map(pathlib.Path, sys.argv[1:])
    programs = programs.resolve()
    sizes = sizes_of(programs / "weft-proxy")
    everything = collections.Counter()
    for name, size in sizes.items():
        everything[pattern(name)] += size
    traced = [executed(programs, scenarios) for scenarios in SCENARIOS]
    text, taken = HEAD, set()
    for group in [steady for _, steady in traced[:STEADY]] + [names for names, _ in traced]:
        names = {pattern(name) for name in group if name in sizes} - taken
        wanted = {name: everything[name] for name in names}
        others = {name: size for name, size in everything.items() if name not in names and name not in taken}
        patterns = shortest(wanted, others)
        print(f"layout: {sum(wanted.values()) // 1024} KiB in {len(patterns)} patterns", file=sys.stderr)
        text += "".join(f"    *(.text*.{name})\n" for name in patterns)
        taken |= names
    output.write_text(text + TAIL)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main()
