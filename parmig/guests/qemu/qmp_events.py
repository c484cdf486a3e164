# SPDX-License-Identifier: Apache-2.0
"""Events of QEMU, queued in a thread with an event loop and waited for in one without.

A listener has a descriptor, so that one poll can wait for an event, a stream and the end of a process.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections import deque
from typing import Any, NamedTuple, Protocol

from parmig.errors import GuestError


class Pollable(Protocol):
    """An object with a descriptor to wait for."""

    def fileno(self) -> int:
        """The descriptor."""


class Event(NamedTuple):
    """One event of QEMU.

    Attributes:
        name: such as ``STOP``.
        data: the event's own fields.
        at_ns: when QEMU raised it, on the clock of ``time.monotonic_ns()``; never later than its arrival here.
    """

    name: str
    data: dict[str, Any]
    at_ns: int

    @property
    def status(self) -> str:
        """The ``status`` field, which MIGRATION events have; empty elsewhere."""
        return str(self.data.get("status", ""))


class Session(Protocol):
    """What a listener needs from its connection."""

    def check(self, doing: str) -> None:
        """Raise GuestError, naming *doing*, when the connection is lost."""

    def forget(self, listener: Listener) -> None:
        """Queue nothing more for *listener*."""


class Listener:
    """A queue of events with a descriptor to wait for. It holds all events since it was made.

    :meth:`.qmp.Qmp.listen` makes it. It is a context manager; leaving it ends the listening.
    """

    def __init__(self, session: Session, names: tuple[str, ...]) -> None:
        self._session = session
        self._names = names
        self._events: deque[Event] = deque()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # Without it the loop could write to a descriptor that was closed, and its number used again.
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """A descriptor that is readable while an event waits, or once the connection is lost."""
        return self._wake

    def put(self, event: Event | None) -> None:
        """(event loop) Queue *event*; None only wakes the waiter, because the connection is lost."""
        if event is not None and event.name not in self._names:
            return
        with self._lock:
            if self._wake < 0:
                return
            if event is not None:
                self._events.append(event)
            os.eventfd_write(self._wake, 1)

    def take(self) -> Event | None:
        """The oldest waiting event, or None.

        Raises:
            GuestError: no event waits, and none will come: the connection is lost.
        """
        # Cleared before looking: an event that comes after the look wakes the next wait.
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        if not self._events:
            self._session.check("waiting for " + "/".join(self._names))
            return None
        event = self._events.popleft()
        if self._events:
            os.eventfd_write(self._wake, 1)
        return event

    def get(self, limit_s: float) -> Event:
        """The oldest event, waiting for it at most *limit_s* seconds.

        Raises:
            GuestError: the limit passed, or the connection is lost.
        """
        deadline = time.monotonic() + limit_s
        while (event := self.take()) is None:
            if not wait_readable(deadline, self):
                raise GuestError(f"QEMU did not report {'/'.join(self._names)} within {limit_s:g} s")
        return event

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.forget(self)
        with self._lock:
            os.close(self._wake)
            self._wake = -1


def wait_readable(deadline: float, *sources: Pollable | int) -> list[int]:
    """The descriptors of *sources* that became readable; empty once ``time.monotonic()`` passes *deadline*."""
    poll = select.poll()
    for source in sources:
        poll.register(source, select.POLLIN)
    return [fd for fd, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000)]
