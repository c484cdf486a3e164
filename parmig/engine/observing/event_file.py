# SPDX-License-Identifier: Apache-2.0
"""Writes events to a file. A thread of its own does it, so a slow disk or a full pipe never holds up a pause."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from collections.abc import Sequence

from parmig import logs
from parmig.engine.reporting.notes import Note, encode
from parmig.errors import HostRefusedError
from parmig.linux import trusted_files

_logger = logging.getLogger(__name__)

MAX_WAITING = 10_000
"""Events that may wait for the file; more are dropped. A round of a millisecond makes a thousand a second."""

CLOSE_LIMIT_S = 2.0
"""How long the last events may take to be written."""


class EventFile:
    """Appends events to the file at *path*, a line each, with mode 0600 if it is new.

    Raises:
        HostRefusedError: it cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._fd = trusted_files.open_file(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        except OSError as error:
            raise HostRefusedError(f"cannot write events to {path}: {error.strerror or error}") from error
        self._waiting: queue.Queue[Sequence[Note] | None] = queue.Queue(MAX_WAITING)
        self._dropped = 0
        self._gives_up = False
        self._thread = threading.Thread(target=self._run, name="parmig-events", daemon=True)
        self._thread.start()

    def take(self, notes: Sequence[Note]) -> None:
        """Write *notes* soon."""
        try:
            self._waiting.put_nowait(notes)
        except queue.Full:
            self._dropped += len(notes)

    def _run(self) -> None:
        while (notes := self._waiting.get()) is not None and not self._gives_up:
            try:
                left = memoryview(encode(notes))
                while left:
                    left = left[os.write(self._fd, left) :]
            except OSError as error:
                self._dropped += len(notes)
                _logger.warning("cannot write events to %s: %s", self._path, error.strerror)
        os.close(self._fd)

    def close(self) -> None:
        """Write what waits. Never raises; a file that does not take it is left to the thread after a while."""
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=CLOSE_LIMIT_S)
        self._thread.join(CLOSE_LIMIT_S)
        self._gives_up = True
        if self._dropped or self._thread.is_alive():
            _logger.warning("events are missing in %s", self._path, extra=logs.REPORTED)
