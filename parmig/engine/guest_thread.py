# SPDX-License-Identifier: Apache-2.0
"""One thread in which all calls to the guest happen, in order, so that the engine's loop never blocks."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from parmig.errors import LimitExceededError

T = TypeVar("T")

CALL_LIMIT_S = 60.0
"""No guest operation takes this long: each has a shorter limit of its own. A backstop."""


class GuestThread:
    """Runs calls one after the other; tells the loop by a descriptor when one is done.

    Attributes:
        wake_fd: an eventfd, readable when a call is done or :meth:`wake` was called.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="parmig-guest")
        self._done: deque[tuple[Callable[[Any], None], Future[Any]]] = deque()
        self._lock = threading.Lock()
        self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def wake(self) -> None:
        """Make ``wake_fd`` readable; safe from any thread and from a signal handler. Nothing after close()."""
        if self.wake_fd >= 0:
            os.eventfd_write(self.wake_fd, 1)

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        """Run *function* in the thread, wait for it, and return or raise what it did."""
        future = self._executor.submit(function, *arguments)
        try:
            return future.result(CALL_LIMIT_S)
        except TimeoutError as error:
            if future.done():
                raise  # the function's own
            raise LimitExceededError(
                f"the guest did not finish {function.__name__} within {CALL_LIMIT_S:.0f} s"
            ) from error

    def begin(self, then: Callable[[Future[Any]], None], function: Callable[..., Any], *arguments: object) -> None:
        """Run *function* in the thread; when it is done, :meth:`finished` runs ``then(future)``."""
        future = self._executor.submit(function, *arguments)
        future.add_done_callback(lambda done: self._note(then, done))

    def _note(self, then: Callable[[Future[Any]], None], done: Future[Any]) -> None:
        with self._lock:
            self._done.append((then, done))
        self.wake()

    def finished(self) -> None:
        """In the loop's thread: clear ``wake_fd`` and run the continuations of what is done."""
        try:
            os.eventfd_read(self.wake_fd)
        except BlockingIOError:
            pass
        while True:
            with self._lock:
                if not self._done:
                    return
                then, done = self._done.popleft()
            then(done)

    def close(self) -> None:
        """Wait for the call under way, if any, and end."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        fd, self.wake_fd = self.wake_fd, -1  # its number may be another's soon
        os.close(fd)
