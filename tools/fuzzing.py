# SPDX-License-Identifier: Apache-2.0
"""What all fuzzers share: targets, damaged inputs, limits of time and memory, atheris."""

from __future__ import annotations

import gc
import random
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import NamedTuple

from parmig.errors import ParmigError

MEMORY_LIMIT_BYTES = 64 << 20
TIME_LIMIT_S = 10.0
"""For one input. All inputs are small, so one that takes longer hangs; a busy machine may stop a process for a second.
"""


class FindingError(Exception):
    """What a reader must not do."""


class Target(NamedTuple):
    """One reader.

    Attributes:
        run: gives an input to the reader.
        seeds: valid inputs.
        documented: the errors that it may raise.
    """

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    documented: tuple[type[BaseException], ...] = (ParmigError,)


class Outcome(NamedTuple):
    """What became of one target.

    Attributes:
        inputs: how many it was given.
        refused: how many of them it refused with a documented error.
        grew_bytes: by how much this process grew.
        longest_ms: what the slowest input took.
    """

    inputs: int
    refused: int
    grew_bytes: int
    longest_ms: float


def check(target: Target, content: bytes) -> bool:
    """Give *content* to *target*; returns whether it was refused. Raises whatever is not documented."""
    try:
        target.run(content)
    except target.documented:
        return True
    return False


def peak_bytes() -> int:
    """The most memory that this process had so far; ru_maxrss would count its parent's too."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise OSError("no VmHWM in /proc/self/status")


def damaged(content: bytes, chance: random.Random) -> bytes:
    """*content* with a few bytes changed, taken out, put in or doubled, or cut off."""
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at = chance.randrange(len(changed) + 1)
        width = chance.choice((1, 1, 2, 4, 8, 300))
        match chance.randrange(6):
            case 0:
                changed[at : at + width] = chance.randbytes(width)
            case 1:
                changed[at : at + width] = chance.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * width
            case 2 if changed:
                changed[min(at, len(changed) - 1)] ^= 1 << chance.randrange(8)
            case 3:
                del changed[at : at + width]
            case 4:
                changed[at:at] = changed[at : at + width]
            case _ if not chance.randrange(4):
                del changed[at:]
    return bytes(changed)


def fuzz_plain(name: str, target: Target, seed: int, findings: Path, *, seconds: float = 0, inputs: int = 0) -> Outcome:
    """Damage valid inputs at random for some time, or so many times.

    Raises:
        FindingError: memory grew too much, or an input took too long; other exceptions as the reader raised them. The
            input is in *findings*.
    """
    chance, pool = random.Random(seed), target.seeds()
    for seed_input in pool:
        target.run(seed_input)  # a seed that fails would test nothing
    before = peak_bytes()
    began = time.monotonic()
    until = began + seconds if seconds else float("inf")
    done = refused = 0
    longest_s = 0.0
    while began < until and not (inputs and done >= inputs):
        content = damaged(chance.choice(pool), chance)
        try:
            refused += check(target, content)
            ended = time.monotonic()
            longest_s, began = max(longest_s, ended - began), ended
            if longest_s > TIME_LIMIT_S:
                raise FindingError(f"one input took {longest_s:.1f} s")
            if peak_bytes() - before > MEMORY_LIMIT_BYTES:
                raise FindingError(f"memory grew by {peak_bytes() - before} bytes")
        except BaseException:
            findings.mkdir(parents=True, exist_ok=True)
            (findings / f"{name}-{zlib.crc32(content):08x}").write_bytes(content)
            raise
        done += 1
    return Outcome(done, refused, peak_bytes() - before, longest_s * 1000)


def fuzz_atheris(name: str, target: Target, seed: int, findings: Path, *, seconds: float, inputs: int) -> None:
    """Fuzz one target in this process by coverage of parmig and of the targets; ends the process."""
    import atheris

    corpus = findings / f"corpus-{name}"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed_input in enumerate(target.seeds()):
        target.run(seed_input)  # which imports all that the target needs
        (corpus / f"seed-{number}").write_bytes(seed_input)
    # All of Python's functions would take ten times as long to prepare: 12,000 against 1,700.
    for function in gc.get_objects():
        if isinstance(function, FunctionType) and (function.__module__ or "").startswith(("parmig.", "tools.")):
            atheris.instrument_func(function)
    options = [
        f"-max_total_time={seconds:g}" if seconds else f"-runs={inputs}",
        f"-seed={seed}",
        f"-timeout={TIME_LIMIT_S:g}",
        "-max_len=16384",
        "-rss_limit_mb=0",  # atheris 3.0 itself keeps a few hundred bytes of each execution: --plain looks at memory
        "-print_final_stats=1",
    ]
    atheris.Setup(
        [sys.argv[0], *options, f"-artifact_prefix={findings}/{name}-", str(corpus)],
        lambda content: check(target, content) and None,
    )
    atheris.Fuzz()
