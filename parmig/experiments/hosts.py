# SPDX-License-Identifier: Apache-2.0
"""The two hosts of a run, and the processes that are started there.

A host is a network namespace of the lab (:mod:`.netlab`), or this machine with its loopback device. Either way the
processes of each side have a cgroup of their own (:mod:`.sides`), where this machine allows that.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, NamedTuple

from parmig.errors import HostRefusedError
from parmig.experiments.factors import Factors
from parmig.experiments.interruption import Interruption
from parmig.experiments.sides import Sides, two_sides
from parmig.linux import process

END_LIMIT_S = 10.0
"""How long a process may take to end after SIGTERM; a command of parmig sets the guest right meanwhile."""

Enter = Callable[[], contextlib.AbstractContextManager[None]]


class Host:
    """One of both.

    Args:
        enter: makes a context; what this thread starts inside belongs to the host and to its side.
        addresses: of this host, one for each path.
        interruption: ends what runs.
    """

    def __init__(self, enter: Enter, addresses: Sequence[str], interruption: Interruption) -> None:
        self.entered = enter
        self.addresses = tuple(addresses)
        self._interruption = interruption

    @contextlib.contextmanager
    def running(self, argv: Sequence[str], **pipes: int | IO[bytes]) -> Iterator[subprocess.Popen[str]]:
        """A process on this host. It is ended with the context, and by the kernel if this process is killed.

        It is in a session of its own: a Ctrl-C is for the experiment, which then ends it in order.
        """
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL, **pipes}
        with self.entered():
            started = subprocess.Popen(argv, text=True, start_new_session=True, preexec_fn=_end_with_parent, **given)
        with started:
            try:
                with self._interruption.ending(started):
                    yield started
            finally:
                end(started)


class Spent(NamedTuple):
    """Seconds of processor time: of the source, of the destination, of both.

    Those of a side are None where there is no cgroup. Then both are what processes used that have ended.
    """

    source_s: float | None
    destination_s: float | None
    both_s: float


class Hosts(NamedTuple):
    """Both, for one run."""

    source: Host
    destination: Host
    sides: Sides

    def processor_s(self) -> Spent:
        """What the processes have used so far."""
        source, destination = self.sides.processor_s()
        if source is not None and destination is not None:
            return Spent(source, destination, source + destination)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return Spent(None, None, used.ru_utime + used.ru_stime)

    def processor_s_since(self, before: Spent) -> Spent:
        """What they have used since :meth:`processor_s` gave *before*."""
        now = self.processor_s()
        if now.source_s is None or now.destination_s is None or before.source_s is None or before.destination_s is None:
            return Spent(None, None, now.both_s - before.both_s)
        sides = now.source_s - before.source_s, now.destination_s - before.destination_s
        return Spent(*sides, now.both_s - before.both_s)


def end(started: subprocess.Popen[Any]) -> None:
    """End a process in order, else by force."""
    if started.poll() is None:
        started.terminate()
        try:
            started.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


@contextlib.contextmanager
def open_hosts(kind: str, factors: Factors, interruption: Interruption) -> Iterator[Hosts]:
    """Both hosts, joined as *factors* say; gone afterwards.

    Args:
        kind: one of :data:`.sweep.HOSTS`.
        interruption: ends what runs there.

    Raises:
        HostRefusedError: there can be no lab here.
    """
    with contextlib.ExitStack() as stack:
        sides = stack.enter_context(two_sides(pinned=False))
        if kind == "loopback":
            addresses = [f"127.0.0.{number}" for number in range(1, factors.paths + 1)]
            hosts = [Host(side.entered, addresses, interruption) for side in sides]
        else:
            hosts = _lab_hosts(stack, factors, sides, interruption)
        yield Hosts(hosts[0], hosts[1], sides)


def _lab_hosts(stack: contextlib.ExitStack, factors: Factors, sides: Sides, interruption: Interruption) -> list[Host]:
    try:
        from parmig.experiments.netlab import Line, open_lab
    except ImportError as error:
        raise HostRefusedError(
            'the lab needs the package pyroute2; install parmig[experiments], or write hosts = "loopback"'
        ) from error
    line = Line(factors.link_rate_bytes_per_s, factors.link_delay_ns)
    try:
        lab = stack.enter_context(open_lab([line] * factors.paths))
    except OSError as error:
        raise HostRefusedError(
            f'the lab cannot be opened: {error}; run this as root, or write hosts = "loopback"'
        ) from error

    def entering(place: int) -> Enter:
        @contextlib.contextmanager
        def enter() -> Iterator[None]:
            with sides[place].entered(), lab.hosts[place].entered():
                yield

        return enter

    return [
        Host(entering(place), [link.address(lab.hosts[place]) for link in lab.links], interruption) for place in (0, 1)
    ]


def _end_with_parent() -> None:
    process.die_with_parent(signal.SIGTERM)
