# SPDX-License-Identifier: Apache-2.0
"""Programs of the user that run at certain moments of a migration."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping

import msgspec

from parmig.config import SendConfig
from parmig.errors import HookError

BEFORE_PAUSE, BEFORE_HAND_OVER, AFTER_END = "before-pause", "before-hand-over", "after-end"
"""The moments at which a program may run."""

LIMIT_S = 60.0
"""How long a program may take. Before the hand-over, ``--switchover-timeout`` is usually over earlier."""


class RunHook(msgspec.Struct, frozen=True):
    """An instruction of the source's plan: run the program for this moment."""

    when: str


def programs(config: SendConfig) -> dict[str, str]:
    """The programs that the user of ``parmig send`` wants to run during the migration, by moment."""
    named = {BEFORE_PAUSE: config.before_pause, BEFORE_HAND_OVER: config.before_hand_over}
    return {when: program for when, program in named.items() if program}


class Hooks:
    """Runs the programs, each in a session of its own that is ended with this object.

    A program gets what is known of the migration as JSON on standard input, and the moment in ``PARMIG_HOOK``. What it
    prints goes to the standard error of the command.

    Args:
        programs: by moment; a moment without one is not named.
        wake: makes the loop look for what has ended; called in another thread.
    """

    def __init__(self, programs: Mapping[str, str], wake: Callable[[], None]) -> None:
        self.programs = programs
        self._wake = wake
        self._ended: deque[tuple[str, HookError | None]] = deque()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def start(self, when: str, facts: bytes) -> None:
        """Run the program for the moment *when*; :meth:`ended` says how it ended. *facts* is JSON."""
        self._thread = threading.Thread(target=self._run, args=(when, facts), name="parmig-hook", daemon=True)
        self._thread.start()

    def _run(self, when: str, facts: bytes) -> None:
        problem: HookError | None = None
        try:
            self.run(when, facts)
        except HookError as error:
            problem = error
        self._ended.append((when, problem))
        self._wake()

    def run(self, when: str, facts: bytes) -> None:
        """Run the program for the moment *when*, and wait for it.

        Raises:
            HookError: it cannot be started, takes too long, or ends with another code than 0.
        """
        program = self.programs[when]
        try:
            process = self._process = subprocess.Popen(
                [program],
                stdin=subprocess.PIPE,
                stdout=2,
                env={**os.environ, "PARMIG_HOOK": when},
                start_new_session=True,
            )
        except OSError as error:
            raise HookError(f"the program {program} ({when}) cannot be started: {error.strerror}") from error
        if self._closed:
            _kill(process)
        try:
            process.communicate(facts, LIMIT_S)
        except subprocess.TimeoutExpired as error:
            _kill(process)
            process.communicate()
            raise HookError(f"the program {program} ({when}) did not end within {LIMIT_S:g} s") from error
        if process.returncode:
            code = process.returncode
            how = f"ended with code {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"
            raise HookError(f"the program {program} ({when}) {how}; what it printed says why")

    def ended(self) -> Iterator[tuple[str, HookError | None]]:
        """The moments whose programs have ended, and how each failed, or None."""
        while self._ended:
            yield self._ended.popleft()

    def close(self) -> None:
        """End a program that runs."""
        self._closed = True
        if self._process is not None:
            _kill(self._process)
        if self._thread is not None:
            self._thread.join()


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
