# SPDX-License-Identifier: Apache-2.0
"""One thread in which all calls to the guest happen, in order, so that the engine's loop never blocks.

It is a daemon thread, and every wait for it has a limit: a call that never returns holds up neither the loop nor
the end of the process.
"""

from __future__ import annotations

import contextvars
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

from parmig.errors import LimitExceededError
from parmig.units import NS_PER_MS, format_ms

_logger = logging.getLogger(__name__)

T = TypeVar("T")

CALL_LIMIT_S = 60.0
"""No guest operation takes this long: each has a shorter limit of its own. A backstop."""

_OFTEN = ("info", "memory", "traits", "is_running", "can_throttle", "write_state", "rescue", "ask")
"""Calls that a log shows only with details."""

CLOSE_LIMIT_S = 5.0
"""How long to wait for the call under way. A call that hangs is abandoned."""


class _Call(NamedTuple):
    future: Future[Any]
    function: Callable[..., Any]
    arguments: tuple[object, ...]
    context: contextvars.Context


class GuestThread:
    """Runs calls one after the other; signals the loop by a descriptor when one is done.

    Args:
        name: of the thread.

    Attributes:
        wake_fd: an eventfd, readable when a call is done or :meth:`wake` was called.
    """

    def __init__(self, name: str = "parmig-guest") -> None:
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._done: deque[tuple[Callable[[Any], None], Future[Any]]] = deque()
        self._lock = threading.Lock()
        self._closing = False
        self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            if self._closing or not call.future.set_running_or_notify_cancel():
                continue
            began_ns = time.monotonic_ns()
            problem: BaseException | None = None
            try:
                result = call.context.run(call.function, *call.arguments)
            except BaseException as error:  # whoever waits for it decides
                problem = error
                call.future.set_exception(error)
            else:
                call.future.set_result(result)
            call.context.run(_log_call, call.function.__name__, time.monotonic_ns() - began_ns, problem)
            del problem
            del call  # else it would keep the guest alive until the next call

    def _submit(self, function: Callable[..., T], *arguments: object) -> Future[T]:
        future: Future[T] = Future()
        self._calls.put(_Call(future, function, arguments, contextvars.copy_context()))
        return future

    def wake(self) -> None:
        """Make ``wake_fd`` readable; safe from any thread and from a signal handler. Does nothing after close()."""
        if self.wake_fd >= 0:
            os.eventfd_write(self.wake_fd, 1)

    def call(self, function: Callable[..., T], *arguments: object, limit_s: float | None = None) -> T:
        """Run *function* in the thread, wait for it, and return or raise what it did.

        Args:
            limit_s: how long to wait, calls before it included; CALL_LIMIT_S when None.

        Raises:
            LimitExceededError: it did not return in time. If it had not begun, it never will.
        """
        limit_s = CALL_LIMIT_S if limit_s is None else limit_s
        future = self._submit(function, *arguments)
        try:
            return future.result(limit_s)
        except TimeoutError as error:
            if future.done():
                raise  # the function's own
            future.cancel()
            raise LimitExceededError(f"the guest did not finish {function.__name__} within {limit_s:g} s") from error

    def begin(self, then: Callable[[Future[Any]], None], function: Callable[..., Any], *arguments: object) -> None:
        """Run *function* in the thread; when it is done, :meth:`finished` runs ``then(future)``."""
        future: Future[Any] = Future()
        future.add_done_callback(lambda done: self._note(then, done))
        self._calls.put(_Call(future, function, arguments, contextvars.copy_context()))

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

    def close(self, limit_s: float | None = None) -> bool:
        """End the thread: drop calls that have not begun, and wait for the one under way.

        Args:
            limit_s: how long to wait; None: CLOSE_LIMIT_S.

        Returns:
            whether the thread has ended; if not, the call under way still uses what it was given.
        """
        self._closing = True
        self._calls.put(None)
        self._thread.join(CLOSE_LIMIT_S if limit_s is None else limit_s)
        with self._lock:
            fd, self.wake_fd = self.wake_fd, -1  # its number may soon be reused
        if fd >= 0:
            os.close(fd)
        return not self._thread.is_alive()


def _log_call(name: str, took_ns: int, problem: BaseException | None) -> None:
    name = name.lstrip("_")
    took = format_ms(took_ns / NS_PER_MS)
    if problem is not None:
        _logger.info("guest: %s failed after %s: %s: %s", name, took, type(problem).__name__, problem)
    else:
        _logger.log(logging.DEBUG if name in _OFTEN else logging.INFO, "guest: %s took %s", name, took)
