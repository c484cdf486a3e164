# SPDX-License-Identifier: Apache-2.0
"""parmig beside QEMU's own multifd, iperf3 and bare pairs of processes: a paused guest of random data over loopback.

usage: python -m tools.bench_peers [--conditions cold,warm,populated] [--fills outside,guest] [--placements free,pinned]
           [--memory-mib 2048] [--rounds 5] [--contenders NAME,...] [--pairs 1,2] [--channels 2,4] [--workers 1,2]
           [--json FILE [--append]] [--plot FILE.png]

In each round, each contender runs once in each setting. The order changes from round to round by --seed, so that no
contender always follows the same one, and a change of the machine's load hits all alike.
:class:`.bench_contenders.Setting` says what the settings are; the module also says what each contender does.

MiB/s       guest bytes over the time of the whole move. QEMU's ends when the destination has loaded everything
no set-up   the same without the time to start and connect workers or channels
floor       the rate over that of the best bare pairs (:mod:`tools.bare_pair`) in the same setting
iperf3      the rate over that of iperf3 with as many streams
QEMU        the rate over that of QEMU's best number of channels in the same setting
s/GiB       processor seconds of both sides for each GiB

Two sizes (--memory-mib 1024,5120) also give the processor seconds for each further GiB, without what starting costs.
The file of --json is written after each run. --append adds to it; with --rounds 0 the table and the plot are made of
what it has. PARMIG_QEMU chooses another QEMU.
"""

from __future__ import annotations

import argparse
import compileall
import itertools
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

import parmig
from parmig.experiments.sides import two_sides
from parmig.units import GIB
from tests.qemu.machines import QEMU
from tools.bench_contenders import CONDITIONS, CONTENDERS, FILLS, PLACEMENTS, Setting, missing
from tools.bench_lab import MIB, describe_host, to_json
from tools.bench_table import Row, medians, slopes, write_table

FILL_BLOCK_MIB = 16


class Results:
    """All runs so far, and the invocations that they belong to; kept in a file if *path* is given.

    Raises:
        ValueError: the file exists, and *append* is false.
    """

    def __init__(self, path: Path | None, *, append: bool) -> None:
        self._path = path
        self.invocations: list[dict[str, Any]] = []
        self.runs: list[Row] = []
        if path and path.exists():
            if not append:
                raise ValueError(f"{path} exists; give --append to add to it, or the name of a new file")
            kept = msgspec.json.decode(path.read_bytes())
            self.invocations, self.runs = kept["invocations"], kept["runs"]

    @property
    def next_round(self) -> int:
        """The number of the next round; the first is 1."""
        return max((run["round"] for run in self.runs), default=0) + 1

    def host(self) -> str:
        """What the last runs were measured on, in one line."""
        host = self.invocations[-1]["host"]
        return f"{host['cpu']}, {host['cores']} cores, Linux {host['kernel']}, {host['qemu']}"

    def save(self) -> None:
        """Write the file, so that a run which was interrupted loses nothing that was measured."""
        if self._path:
            rows = medians(self.runs)
            kept = {"invocations": self.invocations, "runs": self.runs, "medians": rows, "slopes": slopes(rows)}
            new = self._path.with_name(self._path.name + ".new")
            new.write_text(to_json(kept) + "\n")
            new.replace(self._path)


def run_round(number: int, settings: Sequence[Setting], contenders: Sequence[tuple[str, int]], seed: int) -> Any:
    """Run each contender once in each setting, in an order that follows from *seed* and *number*; yields a row each."""
    shuffled = random.Random(f"{seed} {number}")
    for setting in settings:
        order = list(contenders)
        shuffled.shuffle(order)
        for place, (name, count) in enumerate(order, 1):
            with two_sides(pinned=setting.placement == "pinned") as sides:
                outcome = CONTENDERS[name](setting, sides, count)
            spent = outcome.processor_s
            yield {
                "round": number,
                "place_in_turn": place,
                "memory_mib": setting.memory_bytes // MIB,
                **{factor: getattr(setting, factor) for factor in ("condition", "fill", "placement")},
                "contender": name,
                "count": count,
                "mib_per_s": round(outcome.moved_bytes / MIB / outcome.whole_s),
                "without_setup_mib_per_s": round(outcome.moved_bytes / MIB / outcome.transfer_s),
                "source_processor_s": outcome.source_processor_s,
                "destination_processor_s": outcome.destination_processor_s,
                "processor_s": spent,
                "processor_s_per_gib": None if spent is None else spent / outcome.moved_bytes * GIB,
            }


def main() -> None:
    """Run the contenders in turns; print the medians, and write them to files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, allowed, default in (
        ("--conditions", CONDITIONS, CONDITIONS[:2]),
        ("--fills", FILLS, ("outside",)),
        ("--placements", PLACEMENTS, ("free",)),
        ("--contenders", tuple(CONTENDERS), tuple(name for name in CONTENDERS if name != "floor-pwrite")),
    ):
        help_text = f"of {', '.join(allowed)}; default: {','.join(default)}"
        parser.add_argument(option, type=_names_of(allowed), default=default, metavar="LIST", help=help_text)
    for option, numbers, help_text in (
        ("--memory-mib", "2048", f"sizes of the guest, multiples of {FILL_BLOCK_MIB}"),
        ("--pairs", "1,2", "pairs of the floor, and streams of iperf3"),
        ("--channels", "2,4", "multifd channels of QEMU"),
        ("--workers", "1,2", "workers of parmig"),
    ):
        help_text = f"{help_text}; default: {numbers}"
        parser.add_argument(option, type=_numbers, default=_numbers(numbers), metavar="LIST", help=help_text)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--append", action="store_true", help="add to the file of --json")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="needs matplotlib, of the extra experiments")
    options = parser.parse_args()
    if any(size % FILL_BLOCK_MIB for size in options.memory_mib):
        parser.error(f"--memory-mib: each size is filled in blocks of {FILL_BLOCK_MIB} MiB; give multiples of it")
    try:
        results = Results(options.json, append=options.append)
    except ValueError as error:
        parser.error(str(error))
    run_rounds(results, options)
    print(write_table(results.runs))
    if options.plot:
        from tools.bench_plot import draw  # matplotlib is needed for nothing else

        draw(results.runs, options.plot, host=results.host())


def run_rounds(results: Results, options: argparse.Namespace) -> None:
    """Run --rounds more rounds and add their rows to *results*."""
    counts = {"floor": options.pairs, "floor-pwrite": options.pairs, "iperf3": options.pairs, "qemu": options.channels}
    contenders = []
    for name in options.contenders:
        if reason := missing(name):
            print(f"{name} is left out: {reason}")
            continue
        contenders += [(name, count) for count in counts.get(name, options.workers)]
    settings = [
        Setting(memory_mib * MIB, condition, fill, placement)
        for memory_mib, condition, fill, placement in itertools.product(
            options.memory_mib, options.conditions, options.fills, options.placements
        )
    ]
    if options.rounds:
        _compile_parmig()
        version = subprocess.run([QEMU, "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout
        host = {**describe_host(), "qemu": version.splitlines()[0], "parmig": parmig.__version__}
        command = sys.argv[1:]
        results.invocations.append(
            {"host": host, "arguments": command, "began": time.strftime("%FT%TZ", time.gmtime())}
        )
    for number in range(results.next_round, results.next_round + options.rounds):
        for row in run_round(number, settings, contenders, options.seed):
            results.runs.append({"invocation": len(results.invocations) - 1, **row})
            results.save()
            factors = f"{row['memory_mib']} MiB {row['condition']} {row['fill']} {row['placement']}"
            spent = "" if row["processor_s"] is None else f", {row['processor_s']:.2f} processor seconds"
            print(
                f"round {number}, {factors}: {row['contender']} {row['count']}: {row['mib_per_s']} MiB/s{spent}",
                flush=True,
            )


def _compile_parmig() -> None:
    """Compile the modules, as an installation does: without it, each command spends half a second on it."""
    for package in ("parmig", "workers"):
        compileall.compile_dir(Path(parmig.__file__).parent.parent / package, quiet=1)


def _names_of(allowed: Sequence[str]) -> Any:
    def read(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in allowed]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; expected some of {','.join(allowed)}")
        return names

    return read


def _numbers(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected numbers of at least 1")
    return numbers


if __name__ == "__main__":
    main()
