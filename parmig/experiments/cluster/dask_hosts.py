# SPDX-License-Identifier: Apache-2.0
"""The hosts of a Dask cluster: its workers that offer the resource ``parmig-host``. The only client of its scheduler.

A side of a run is a task that is pinned to its host and takes the host's resource. So a host has one run at a time,
also if several programs use the cluster, and no other worker steals it. A task of a worker that is gone is cancelled
here, before the scheduler gives it to anybody: a second try would be another experiment.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import queue
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from distributed import Client, Future

from parmig.errors import HostRefusedError, ParmigError, UsageError
from parmig.experiments.cluster.dask_task import end_side, run_side, tell_side
from parmig.experiments.cluster.side_messages import Order, encode

RESOURCE = "parmig-host"

CONNECT_LIMIT_S = 10.0
"""How long the scheduler may take to answer."""

END_LIMIT_S = 30.0
"""How long a side may take to end. Its processes have 14 s (:mod:`..hosts`, :mod:`..sides`)."""


class HostLostError(ParmigError):
    """The Dask worker of a host is gone."""


class SideEvent:
    """What happened to a side.

    Attributes:
        line: what it said; empty: it has ended.
        lost: its Dask worker is gone, or what Dask said of the task.
    """

    def __init__(self, side: RemoteSide, line: str = "", lost: str = "") -> None:
        self.side, self.line, self.lost = side, line, lost


Events = queue.SimpleQueue[SideEvent | None]
"""Of both sides of a run; None: the run is to end."""


class RemoteSide:
    """One side of a run, on *host*. :meth:`DaskHosts.start` makes it."""

    def __init__(self, name: str, host: str, events: Events) -> None:
        self.name, self.host, self.events = name, host, events
        self.ended = False
        self.task: Future | None = None


class DaskHosts:
    """Use :func:`connected`.

    Args:
        client: of the scheduler.
        topic: of the events of this sweep.
    """

    def __init__(self, client: Client, topic: str) -> None:
        self._client, self._topic = client, topic
        self._names = (f"{topic}-{number}" for number in itertools.count(1))
        self._sides: dict[str, RemoteSide] = {}
        client.subscribe_topic(topic, self._on_word)
        client.subscribe_topic("all", self._on_cluster)

    def check(self) -> None:
        """Raise :class:`HostRefusedError` if the scheduler is gone."""
        if self._client.status != "running":
            raise HostRefusedError(
                "the Dask scheduler is gone; start it and its workers again, and the same command goes on"
            )

    @contextlib.contextmanager
    def _checked(self) -> Iterator[None]:
        """What Dask raises in the context because the scheduler is gone is a :class:`HostRefusedError`."""
        try:
            yield
        except Exception:
            self.check()
            raise

    def hosts(self) -> list[str]:
        """The addresses of the workers that are hosts, in an order that all clients have.

        Raises:
            HostRefusedError: (this and all that follow) the scheduler is gone.
        """
        with self._checked():
            workers = self._client.scheduler_info(n_workers=-1)["workers"]
        return sorted(address for address, worker in workers.items() if worker["resources"].get(RESOURCE))

    def start(self, host: str, order: Order, events: Events) -> RemoteSide:
        """Start a side on *host* as soon as nobody else uses that."""
        side = RemoteSide(next(self._names), host, events)
        self._sides[side.name] = side
        with self._checked():
            side.task = self._client.submit(
                run_side,
                side.name,
                self._topic,
                encode(order),
                order.limit_s,
                key=side.name,
                workers=[host],
                allow_other_workers=False,
                resources={RESOURCE: 1},
                retries=0,
                pure=False,
            )
        side.task.add_done_callback(lambda task: self._on_done(side, task))
        if host not in self.hosts():  # it went before its task was there, so nobody will say it
            self._lose(side)
        return side

    def tell(self, side: RemoteSide, line: str) -> None:
        """Give *side* a line to read."""
        self._run(side, tell_side, line)

    def end(self, side: RemoteSide) -> None:
        """End *side*; it has ended when this returns.

        Raises:
            HostLostError: it does not end.
        """
        if not side.ended:
            if self._run(side, end_side) is False:
                side.ended = True
            deadline = time.monotonic() + END_LIMIT_S
            while not side.ended:
                if time.monotonic() > deadline:
                    raise HostLostError(f"a run did not end on {side.host} within {END_LIMIT_S:g} s; look there")
                with contextlib.suppress(queue.Empty):
                    side.events.get(timeout=0.5)
        assert side.task is not None
        with self._checked():
            side.task.cancel()
        self._sides.pop(side.name, None)

    def close(self) -> None:
        """Hear nothing of the cluster any more."""
        if self._client.status == "running":
            self._client.unsubscribe_topic("all")
            self._client.unsubscribe_topic(self._topic)

    def _run(self, side: RemoteSide, function: Any, *arguments: str) -> Any:
        """Call *function* in the worker of *side*; None if that is gone."""
        with self._checked(), contextlib.suppress(OSError, KeyError, ValueError):
            return self._client.run(function, side.name, *arguments, workers=[side.host])[side.host]
        return None

    # -- in the client's own thread ---------------------------------------------------------------

    def _on_word(self, event: tuple[float, dict[str, str]]) -> None:
        side = self._sides.get(event[1]["side"])
        if side is not None:
            side.ended = side.ended or not event[1]["line"]
            side.events.put(SideEvent(side, event[1]["line"]))

    def _on_cluster(self, event: tuple[float, dict[str, Any]]) -> None:
        if event[1].get("action") == "remove-worker":
            for side in tuple(self._sides.values()):
                if side.host == event[1]["worker"]:
                    self._lose(side)

    def _lose(self, side: RemoteSide) -> None:
        side.ended = True
        side.events.put(SideEvent(side, lost="its Dask worker is gone"))

    def _on_done(self, side: RemoteSide, task: Future) -> None:
        """The task has ended. Its words come by the scheduler, too, and may be under way still."""
        if task.status != "finished" and not side.ended:
            reason = task.exception() if task.status == "error" else f"its task is {task.status}"
            side.ended = True
            side.events.put(SideEvent(side, lost=f"Dask could not run it: {reason}"))


@contextlib.contextmanager
def connected(address: str) -> Iterator[DaskHosts]:
    """The hosts of the cluster whose scheduler is at *address*.

    Raises:
        UsageError: nobody answers there.
    """
    if not urlsplit(address).port:
        raise UsageError(f"--cluster is {address!r}; expected the address of a Dask scheduler: tcp://HOST:8786")
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # it logs with tracebacks what is an error here
    try:
        client = Client(address, timeout=CONNECT_LIMIT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise HostRefusedError(
            f"no Dask scheduler answers at {address}: {error}; start one, or mend --cluster"
        ) from error
    with client, contextlib.closing(DaskHosts(client, f"parmig-{client.id}")) as hosts:
        yield hosts
