# SPDX-License-Identifier: Apache-2.0
"""Log lines: where they go, and what each of them names besides its text: side, worker and session.

Every module has a logger of its own, named after it. A thread of the log writes the lines, so a slow disk or terminal
holds up no migration. Workers have no log: their lines travel over the pipe to the coordinator.
"""

from __future__ import annotations

import hashlib
import logging
import logging.handlers
import os
import queue
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from io import TextIOWrapper
from pathlib import Path

from parmig.errors import UsageError
from parmig.linux import trusted_files

REPORTED = {"reported": True}
"""``extra`` of a line about an error that the command prints as well: not shown twice on standard error."""

_LOGGERS = ("parmig", "workers")
_FORMAT = "%(asctime)s %(levelname)s %(side)s worker=%(worker)s session=%(session)s %(name)s: %(message)s"
_QUEUE_LINES = 10_000
"""Lines that wait to be written. More are dropped: the log must not hold up what it describes."""


class _Origin:
    """Whose lines a thread writes."""

    side = "-"
    session = "-"


_NOBODY = _Origin()
_origin: ContextVar[_Origin] = ContextVar("parmig_log_origin", default=_NOBODY)


def begin_side(side: str) -> None:
    """From here on the lines of this context are those of *side*, without a session."""
    origin = _Origin()
    origin.side = side
    _origin.set(origin)


def note_session(token: bytes) -> None:
    """Name the session in all lines of this side: a digest of its *token*, which is a secret. Empty: no session."""
    origin = _origin.get()
    if origin is not _NOBODY:
        origin.session = hashlib.blake2s(token, digest_size=16).hexdigest()[:8] if token else "-"


def printable(text: str) -> str:
    """*text* without control characters, which a terminal would obey: some text comes from the peer."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def level() -> int:
    """The lowest level that is written."""
    return logging.getLogger(_LOGGERS[0]).getEffectiveLevel()


def relay(worker: int, name: str, at_level: int, text: str) -> None:
    """Write a line that came from *worker*."""
    logging.getLogger(name).log(at_level, "%s", text, extra={"worker": str(worker)})


@contextmanager
def logging_to(file: str, verbose: int) -> Iterator[None]:
    """While inside, log to *file* if it has a name, and with *verbose* to standard error.

    Args:
        file: lines are appended to it.
        verbose: 0: only warnings on standard error; 1: what happens; 2: also details, in the file too.

    Raises:
        UsageError: the file cannot be written.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler()] if verbose else []
    if file:
        handlers.append(_open(Path(file)))
    if not handlers:
        yield
        return
    for handler in handlers:
        handler.setFormatter(_Formatter(_FORMAT))
    lines: queue.Queue[logging.LogRecord] = queue.Queue(_QUEUE_LINES)
    sink = logging.handlers.QueueHandler(lines)
    sink.addFilter(_add_origin)
    listener = logging.handlers.QueueListener(lines, *handlers)
    root = logging.getLogger()
    plain = [one for one in root.handlers if verbose]  # their lines are in the log on standard error
    before = [(logging.getLogger(name), logging.getLogger(name).level) for name in _LOGGERS]
    raising, logging.raiseExceptions = logging.raiseExceptions, False  # a full disk ends the log, nothing else
    for handler in plain:
        root.removeHandler(handler)
    root.addHandler(sink)
    for logger, _ in before:
        logger.setLevel(logging.DEBUG if verbose > 1 else logging.INFO)
    listener.start()
    try:
        yield
    finally:
        for logger, old_level in before:
            logger.setLevel(old_level)
        root.removeHandler(sink)
        for handler in plain:
            root.addHandler(handler)
        listener.stop()
        logging.raiseExceptions = raising
        for handler in handlers:
            handler.close()


def show_warnings() -> None:
    """Print warnings on standard error, as a command without a log does."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("parmig: %(message)s"))
    handler.addFilter(lambda record: not getattr(record, "reported", False) and _clean(record))
    if not logging.getLogger().handlers:
        logging.getLogger().addHandler(handler)


class _Formatter(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - logging's name
        return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{record.msecs:03.0f}Z"


class _FileHandler(logging.FileHandler):
    def _open(self) -> TextIOWrapper:
        fd = trusted_files.open_file(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        return open(fd, "a", encoding=self.encoding, errors=self.errors)


def _clean(record: logging.LogRecord) -> bool:
    """Make the text of *record* one line that is safe to show. Its traceback, which is ours, stays as it is."""
    record.msg, record.args = printable(record.getMessage()), ()
    return True


def _add_origin(record: logging.LogRecord) -> bool:
    origin = _origin.get()
    record.side, record.session = origin.side, origin.session
    record.worker = getattr(record, "worker", "-")
    return _clean(record)


def _open(path: Path) -> logging.Handler:
    try:
        return _FileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UsageError(f"the log file {path} cannot be written: {error.strerror}; give another --log-file") from error
