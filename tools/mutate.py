# SPDX-License-Identifier: Apache-2.0
"""Would the tests notice? Mutants of the pure modules, by mutmut: ``python -m tools.mutate [MODULE ...]``.

mutmut changes one thing of a function at a time and runs the tests that reach it. Each module is done in a temporary
copy of the tree, with its own tests, one process and a time limit. Mutants that survive are printed as a difference;
those that change nothing that matters are listed in ``harmless.toml`` with the reason.

Survivors that change only the wording of a message ("XX...XX" around it, or its case) are counted apart: tests look for
the words that matter, not for every letter. A string with a blank in it counts as wording, so names, keys and formats
do not. The sum is printed with them and without them; the second counts.

Exit code 1: fewer than 95 % were killed, or one survived that is neither explained nor wording. Needs
``pip install -e '.[test,mutation]'``.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parent.parent
HARMLESS = Path(__file__).with_name("harmless.toml")
ENOUGH = 0.95
NOTICED = ("killed", "timeout")

STATE_TESTS = {
    "arrays": ("test_fields", "test_declare"),
    "state_field": ("test_fields", "test_registry", "test_declare"),
    "cursor": ("test_fields", "test_registry", "test_structs"),
    "declare": ("test_declare",),
    "device": ("test_registry", "test_declare", "test_structs"),
    "fields": ("test_fields", "test_registry"),
    "identity": ("test_registry", "test_structs", "test_live"),
    "live": ("test_live",),
    "state_loader": ("test_registry", "test_structs", "test_live"),
    "nested": ("test_structs", "test_declare"),
    "state_registry": ("test_registry", "test_live"),
    "state_saver": ("test_registry", "test_structs", "test_live"),
    "structs": ("test_structs", "test_declare"),
}
"""For each module of ``parmig/state`` the tests that are about it; all tests would take five times as long."""

TESTS = {
    "parmig/engine/work/policy.py": ("tests/property/test_policy.py",),
    "parmig/engine/work/shares.py": ("tests/property/test_shares.py",),
    "parmig/engine/reporting/record.py": ("tests/engine/reporting/test_record.py",),
    "parmig/ram/packets.py": ("tests/property/test_packets.py",),
    "parmig/ram/bits.py": ("tests/property/test_bits.py",),
    "parmig/stream/sections.py": ("tests/stream/test_sections.py",),
    **{
        f"parmig/state/{name}.py": tuple(f"tests/state/{test}.py" for test in tests)
        for name, tests in STATE_TESTS.items()
    },
    "parmig/engine/source_plan/coordinator.py": ("tests/engine/plan/test_plan.py",),
    "parmig/engine/source_plan/source_steps.py": ("tests/engine/plan/test_plan.py",),
    "parmig/engine/plan/plan.py": (
        "tests/engine/plan/test_plan.py",
        "tests/engine/destination_plan/test_destination.py",
    ),
    "parmig/engine/destination_plan/destination.py": ("tests/engine/destination_plan/test_destination.py",),
    "parmig/engine/destination_plan/destination_steps.py": ("tests/engine/destination_plan/test_destination.py",),
    "parmig/ram/flow.py": ("tests/ram/test_channel.py",),
    **{
        f"parmig/guests/qemu/{name}.py": (f"tests/qemu/test_{name}.py",) for name in ("maps", "ram_list", "ram_structs")
    },
}


CONFTEST = """
import os
import sys

from hypothesis import HealthCheck, Phase, settings

settings.register_profile(
    "mutants", deadline=None, database=None, derandomize=True, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("mutants")


def pytest_configure():
    for name in [name for name in sys.modules if name.startswith("tests.") and name != __name__]:
        del sys.modules[name]


def pytest_collectreport(report):
    if report.failed:
        os._exit(1)
"""
"""Replaces ``tests/conftest.py``, which took half of the time of a mutant.

The tests of pure modules start no process and leave no file open, so nothing has to look for them. Nobody reads the
smallest example. The examples are the same every time, so that a survivor stays a survivor. A mutant also has to
survive the import of the tests: they are imported again, and an error there counts as a test that fails.
"""

_STRING = re.compile(r"""(\w*)("[^"]*"|'[^']*')""")
"""A string and its prefix. It must match every string, so that text between two strings is not taken for a string."""


class Mutant(msgspec.Struct, frozen=True):
    """One change of a module: the lines that went and the lines that came."""

    module: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.module}\n  - {self.old}\n  + {self.new}"

    @property
    def is_wording(self) -> bool:
        """Whether only the text of a message differs; f-strings are left alone by mutmut."""

        def blanked(text: str) -> str:
            return _STRING.sub(lambda match: '""' if " " in match[2] and not match[1] else match[0], text)

        return blanked(self.old) == blanked(self.new)


class Outcome(msgspec.Struct):
    """What became of the mutants of a module."""

    counts: Counter[str]
    survivors: list[Mutant]


@contextmanager
def copied_tree() -> Iterator[Path]:
    """A temporary copy of the tree as it is, without what git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    with tempfile.TemporaryDirectory(prefix="parmig-mutants-") as directory:
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (Path(directory) / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, Path(directory) / name)
        yield Path(directory)


def mutate(module: str, limit_s: float, only: Sequence[str] = (), jobs: int = 1) -> Outcome:
    """Run mutmut on *module* for *limit_s* at most; if *only* is given, on mutants whose names it matches."""
    with copied_tree() as tree:
        with (tree / "pyproject.toml").open("a") as file:
            # forkserver: a fork of a process that ran our fixtures fails every test, and so "kills" every mutant.
            file.write(
                f'\n[tool.mutmut]\nsource_paths = ["parmig", "workers"]\nonly_mutate = ["{module}"]\n'
                f"pytest_add_cli_args_test_selection = {list(map(str, TESTS[module]))}\n"
                'also_copy = ["docs", "tools"]\nprocess_isolation = "forkserver"\n'
            )
        (tree / "tests/conftest.py").write_text(CONFTEST)
        run = [sys.executable, "-m", "mutmut", "run", "--max-children", str(jobs), *only]
        with (tree / "mutmut.log").open("w") as log:
            process = subprocess.Popen(run, cwd=tree, stdout=log, stderr=log, start_new_session=True)
            try:
                process.wait(limit_s)
            except subprocess.TimeoutExpired:
                pass
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        results = dict(re.findall(r"^ *(\S+__mutmut_\d+): (.+)$", _mutmut(tree, "results", "--all", "true"), re.M))
        if not results:
            raise SystemExit(f"{module}: mutmut made nothing:\n{(tree / 'mutmut.log').read_text()[-2000:]}")
        unnoticed = [name for name, status in results.items() if status in ("survived", "no tests")]
        return Outcome(Counter(results.values()), [_mutant(module, _mutmut(tree, "show", name)) for name in unnoticed])


def _mutmut(tree: Path, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "mutmut", *arguments], cwd=tree, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def _mutant(module: str, difference: str) -> Mutant:
    """What ``mutmut show`` printed."""

    def lines(sign: str) -> str:
        changed = re.findall(rf"^\{sign}(?!\{sign}\{sign})(.*)$", difference, re.M)
        return "\n".join(line.strip() for line in changed)

    return Mutant(module, lines("-"), lines("+"))


def explained() -> dict[Mutant, str]:
    """The mutants that may survive, each with the reason."""
    entries = tomllib.loads(HARMLESS.read_text()).get("mutant", [])
    return {Mutant(entry["module"], entry["old"], entry["new"]): entry["why"] for entry in entries}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", help=f"of {', '.join(TESTS)}; all of them without any")
    parser.add_argument("--minutes", type=float, default=15.0, help="time limit of one module")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    parser.add_argument("--only", nargs="+", default=(), help="names of mutants; '*3' is a sample of every tenth")
    arguments = parser.parse_args()
    unknown = set(arguments.modules) - set(TESTS)
    if unknown:
        parser.error(f"no tests are named for {', '.join(unknown)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that mutmut ends too
    harmless = explained()
    total: Counter[str] = Counter()
    open_: list[Mutant] = []
    wording = 0
    for module in arguments.modules or TESTS:
        outcome = mutate(module, arguments.minutes * 60, arguments.only, arguments.jobs)
        total += outcome.counts
        counts = ", ".join(f"{count} {status}" for status, count in sorted(outcome.counts.items()))
        print(f"{module}: {counts}", flush=True)
        for mutant in outcome.survivors:
            why = "wording" if mutant.is_wording else "NOT EXPLAINED"
            print(f"{mutant}\n  {harmless.get(mutant, why)}", flush=True)
        unexplained = [mutant for mutant in outcome.survivors if mutant not in harmless]
        open_ += [mutant for mutant in unexplained if not mutant.is_wording]
        wording += sum(mutant.is_wording for mutant in unexplained)
    tried = sum(count for status, count in total.items() if status != "not checked")
    killed = sum(total[status] for status in NOTICED)
    print(f"{killed} of {tried} killed ({killed / max(1, tried):.1%}), {len(open_)} survivors not explained")
    weighed = tried - wording
    print(f"{killed} of {weighed} killed ({killed / max(1, weighed):.1%}) without the {wording} of mere wording")
    print(f"{total['not checked']} not tried")
    return int(killed < ENOUGH * weighed or bool(open_))


if __name__ == "__main__":
    sys.exit(main())
