# SPDX-License-Identifier: Apache-2.0
"""Kill either side at each step of the hand-over, again and again: one host owns the guest after ``parmig recover``.

usage: python -m tools.torture_handover [--times 3]

The steps are each write of a record, each message and each change of the guest, before it and after it. The guests are
synthetic. It prints a table, and ends with 1 if any run broke the promise.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

handovers: Any = importlib.import_module("tests.integration.handovers")
"""What the tests do once. Their annotations are not for ``mypy --strict``."""

SIDES: dict[str, tuple[Callable[[Any, str], str], dict[str, str]]] = {
    "receiver": (handovers.kill_receiver, handovers.DESTINATION_POINTS),
    "sender": (handovers.kill_sender, handovers.SOURCE_POINTS),
}


def owner_after(kill: Callable[[Any, str], str], point: str) -> str:
    """Who owns the guest in the end; ``WRONG``: a promise was broken, which is printed."""
    with tempfile.TemporaryDirectory(prefix="parmig-torture-") as directory:
        try:
            return kill(handovers.Hosts(Path(directory)), point)
        except AssertionError:
            traceback.print_exc()
            return "WRONG"


def main() -> None:
    """Run all steps, and print who owned the guest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3, help="how often each step")
    options = parser.parse_args()
    wrong = 0
    print(f"{'killed':10} {'step':28} owner after recover")
    for side, (kill, points) in SIDES.items():
        for point in points:
            owners = Counter(owner_after(kill, point) for _ in range(options.times))
            wrong += owners["WRONG"]
            print(
                f"{side:10} {point:28} {', '.join(f'{owner} {count}' for owner, count in owners.items())}", flush=True
            )
    print(f"{wrong} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
