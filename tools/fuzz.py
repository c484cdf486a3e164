# SPDX-License-Identifier: Apache-2.0
"""Feed damaged input to every reader: it returns or raises a documented error, soon, and takes less than 64 MiB.

usage: python -m tools.fuzz [TARGET ...] [--seconds 60 | --inputs N] [--plain] [--seed N] [--findings DIR]

All targets, one after the other, if none is named; ``tools/fuzz_stream.py``, ``tools/fuzz_messages.py`` and
``tools/fuzz_files.py`` have them. With atheris (the extra ``fuzz``) coverage guides the inputs, and each target has a
process of its own. With --plain, or without atheris, valid inputs are damaged at random. An input that fails is kept in
the directory of findings, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

from tools import fuzz_files, fuzz_messages, fuzz_stream
from tools.fuzzing import fuzz_atheris, fuzz_plain

TARGETS = fuzz_stream.TARGETS | fuzz_messages.TARGETS | fuzz_files.TARGETS


def main() -> int:
    """Fuzz what was chosen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", choices=[[], *TARGETS], metavar="TARGET")
    parser.add_argument("--seconds", type=float, default=0, help="for each target (60)")
    parser.add_argument("--inputs", type=int, default=0, help="of each target, instead of a time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    plain = options.plain or importlib.util.find_spec("atheris") is None
    seconds = options.seconds or (0 if options.inputs else 60.0)
    names = options.targets or list(TARGETS)
    if options.in_this_process:
        target = TARGETS[names[0]]
        fuzz_atheris(names[0], target, options.seed, options.findings, seconds=seconds, inputs=options.inputs)
    if plain:
        print(f"{'target':14} {'inputs':>9} {'refused':>9} {'grew KiB':>9} {'slowest ms':>11}", flush=True)
    for name in names:
        if plain:
            done = fuzz_plain(
                name, TARGETS[name], options.seed, options.findings, seconds=seconds, inputs=options.inputs
            )
            row = f"{done.inputs:9} {done.refused:9} {done.grew_bytes >> 10:9} {done.longest_ms:11.1f}"
            print(f"{name:14} {row}", flush=True)
            continue
        limit = ["--seconds", f"{seconds}"] if seconds else ["--inputs", f"{options.inputs}"]
        own = ["--in-this-process", *limit, "--seed", f"{options.seed}", "--findings", str(options.findings)]
        print(f"{name}:", flush=True)
        if (code := subprocess.run([sys.executable, "-m", "tools.fuzz", name, *own], check=False).returncode) != 0:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
