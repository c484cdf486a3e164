# SPDX-License-Identifier: Apache-2.0
"""Both sides of a move on one machine: which core each may use, and how much processor time each has used.

A side is what was started while it was entered, with all children. It has a cgroup of its own, so that processes which
have ended count too. Where no cgroup can be made, the processor time is None.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

END_LIMIT_S = 4.0
"""How long the processes of a side may take to end, half of it by themselves. The guardian of a command that was
cancelled ends within milliseconds of it."""


class _Home(NamedTuple):
    """The cgroup of this process that counts processor time; ``first_version`` says which of both kinds it is."""

    path: Path
    first_version: bool


def _find_home() -> _Home | None:
    """Version 1's ``cpuacct`` where it is mounted, else version 2, which counts in every cgroup; None: not writable."""
    memberships = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    places = {controller: path for _, controllers, path in memberships for controller in controllers.split(",")}
    homes: list[_Home] = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind, options, *_ = line.split()
        if kind == "cgroup" and "cpuacct" in options.split(","):
            homes.insert(0, _Home(Path(mount + places["cpuacct"]), first_version=True))
        elif kind == "cgroup2" and "" in places:
            homes.append(_Home(Path(mount + places[""]), first_version=False))
    return next((home for home in homes if os.access(home.path, os.W_OK)), None)


class Side:
    """One side; :func:`two_sides` makes it.

    Args:
        home: the cgroup of this process, and the parent of the side's own; None: processor time is not counted.
        name: in the name of the cgroup.
        core: the only core that the side's processes may use; None: any.
    """

    def __init__(self, home: _Home | None, name: str, core: int | None) -> None:
        self._home = home
        self._group = home.path / f"parmig-{os.getpid()}-{name}" if home else None
        self._core = core
        if self._group:
            self._group.mkdir()

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Processes that this thread starts inside the context belong to the side; meanwhile this process does too."""
        allowed = os.sched_getaffinity(0)
        self._move_into(self._group)
        try:
            if self._core is not None:
                os.sched_setaffinity(0, {self._core})
            yield
        finally:
            os.sched_setaffinity(0, allowed)
            self._move_into(self._home.path if self._home else None)

    def processor_s(self) -> float | None:
        """Seconds that the side's processes have used, those that have ended included."""
        if self._home is None or self._group is None:
            return None
        if self._home.first_version:
            return int((self._group / "cpuacct.usage").read_text()) / 1e9
        statistics = dict(line.split() for line in (self._group / "cpu.stat").read_text().splitlines())
        return int(statistics["usage_usec"]) / 1e6

    def close(self) -> None:
        """Remove the cgroup. Processes that do not end by themselves are killed first.

        Raises:
            OSError: one cannot be killed.
        """
        began = time.monotonic()
        while self._group is not None:
            try:
                self._group.rmdir()
                return
            except OSError:
                if (waited_s := time.monotonic() - began) > END_LIMIT_S:
                    raise
            for pid in map(int, (self._group / "cgroup.procs").read_text().split()):
                if pid == os.getpid():
                    self._move_into(self._home.path if self._home else None)
                elif waited_s > END_LIMIT_S / 2:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    @staticmethod
    def _move_into(group: Path | None) -> None:
        if group:
            (group / "cgroup.procs").write_text(str(os.getpid()))


class Sides(NamedTuple):
    """Both of them."""

    source: Side
    destination: Side

    def processor_s(self) -> tuple[float | None, float | None]:
        """See :meth:`Side.processor_s`: of the source, of the destination."""
        return self.source.processor_s(), self.destination.processor_s()


@contextlib.contextmanager
def two_sides(*, pinned: bool) -> Iterator[Sides]:
    """Both sides of one run, gone afterwards: free, or each on a core of its own, as two hosts would be.

    Raises:
        ValueError: *pinned*, and this process may use one core only.
    """
    cores = sorted(os.sched_getaffinity(0))
    if pinned and len(cores) < 2:
        raise ValueError("pinned sides need two cores, but this process may use one only; leave 'pinned' out")
    home = _find_home()
    with contextlib.ExitStack() as stack:
        sides = []
        for name, core in (("source", cores[0]), ("destination", cores[-1])):
            side = Side(home, name, core if pinned else None)
            stack.callback(side.close)
            sides.append(side)
        yield Sides(*sides)
