#!/usr/bin/env python3
"""Makes proxy/layout.ld: which functions of weft-proxy stand side by side at the beginning of the program.

    bench/layout.py PROGRAMS OUTPUT      (`make layout` builds the programs, with their symbols, and calls this)

Runs scenarios of the bench with the proxy under callgrind, notes which functions were executed, and writes the shortest
patterns for their names. Names are in Rust's v0 mangling, without what differs from build to build (hashes of crates and
references into the name itself). A pattern may take in other functions too, as long as they are few bytes.
"""

import collections
import os
import pathlib
import re
import subprocess
import sys
import tempfile

# What a proxy does that starts and carries HTTP/1; what it does besides with other protocols, and with a control plane.
SCENARIOS = [["http1-1"], ["http2-32", "grpc-stream", "tcp-bulk"], ["churn"]]
# What a pattern may take in that was not executed: so many bytes, or this share of what was.
EXTRA_BYTES, EXTRA_SHARE = 128, 0.1
# The profile is written anew every so many basic blocks: the bench ends its programs with SIGKILL.
BLOCKS = 5_000_000

HEAD = """\
/* Which functions stand first in the program: those that a proxy executes when it starts from a file and carries HTTP/1,
   then those that it executes besides with other protocols and with a control plane. The kernel maps the program 64 KiB at a time, so what is
   executed is not to lie scattered among what is not. Made by `make layout` (bench/layout.py). A name that no longer
   exists costs nothing, and a function that is missing here some memory. */
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
    """Names of the functions that the proxies executed."""
    names = set()
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
        for profile in scratch.glob("profile.*"):
            for line in profile.read_text(errors="replace").splitlines():
                if found := re.match(r"c?fn=\(\d+\) (.*?)(?:'\d+)?$", line):
                    names.add(found[1])
    return names


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
    text, taken = HEAD, set()
    for scenarios in SCENARIOS:
        names = {pattern(name) for name in executed(programs, scenarios) if name in sizes} - taken
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
