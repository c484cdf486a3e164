# SPDX-License-Identifier: Apache-2.0
"""Checks whether a guest can be moved to a receiver. It moves nothing, and touches no guest."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence

from parmig import logs
from parmig.config import SendConfig
from parmig.engine.driver import as_our_error
from parmig.engine.guest_thread import GuestThread
from parmig.engine.messages.peer_messages import Checked
from parmig.engine.reporting import error_reports
from parmig.engine.reporting.mismatch import Mismatch
from parmig.engine.reporting.report import Progress, Report
from parmig.engine.source.introduction import Introduction, check_throttle
from parmig.engine.source.source import describe_guest
from parmig.errors import CancelledError, PeerRefusedError, ProtocolError, RefusedError
from parmig.guests.guest import Guest
from parmig.ram.codecs.registry import codecs_of, names
from parmig.transport.registry import chosen_transport, transport_name
from parmig.transport.transport import parse_uri
from parmig.units import NS_PER_MS
from parmig.version import __version__

_logger = logging.getLogger(__name__)

CHECKED = "checked"
"""The status of a report: both sides fit, and nothing was moved."""


class MigrationChecker:
    """Compares *guest* and *config* with the receiver at *uri*, which waits on afterwards.

    Args:
        guest: opened by the caller, who also closes it.
        uri: of the receiver's control channel.
        config: how the guest would be migrated.
        progress: called in the thread that called :meth:`start`.
    """

    def __init__(
        self, guest: Guest, uri: str, config: SendConfig, *, progress: Callable[[Progress], None] | None = None
    ) -> None:
        self._guest = guest
        self._uri = uri
        self._config = config
        self._progress = progress
        self._thread = GuestThread()
        self._cancelled = False
        transport = transport_name(config.transport)
        self._report = Report(parmig=__version__, side="source", transport=transport, workers=config.workers)

    def start(self) -> Report:
        """Check, and return the report: status ``checked``, or ``failed`` with all that has to be mended."""
        logs.begin_side("source")
        began_ns = time.monotonic_ns()
        report = self._report
        try:
            with contextlib.ExitStack() as opened:
                report.mismatches = self._compare(opened)
            if report.mismatches:
                raise PeerRefusedError(f"the guest cannot move to {self._uri}: {_count(report.mismatches)} to mend")
            report.status = CHECKED
        except Exception as caught:
            error = as_our_error(caught)
            report.status = "cancelled" if isinstance(error, CancelledError) else "failed"
            report.error = error_reports.describe_error(error, "setup")
        finally:
            self._thread.close()
        report.total_time_ms = (time.monotonic_ns() - began_ns) / NS_PER_MS
        return report

    def cancel(self) -> None:
        """Give up. Safe from a signal handler."""
        self._cancelled = True
        self._thread.wake()

    def _check_cancelled(self) -> None:
        if self._cancelled:
            raise CancelledError("cancelled; nothing was touched")

    def _compare(self, opened: contextlib.ExitStack) -> list[Mismatch]:
        """Everything that has to be mended, on this host and in the comparison of both."""
        config, report = self._config, self._report
        config.check()
        codecs_of(config.compress, names())
        report.transport = chosen_transport(config.transport, parse_uri(self._uri), config.paths)
        info = self._thread.call(self._guest.info)
        memory = list(self._thread.call(self._guest.memory))
        report.compression = config.compress
        report.guest = describe_guest(info, memory)
        mismatches = [*self._option_mismatches(info.kind)]
        introduction = Introduction(parse_uri(self._uri), config, opened, self._check_cancelled)
        for line in (*introduction.prepare(report), f"checking with {self._uri}"):
            if self._progress is not None:
                self._progress(Progress(status="setup", message=line, insecure=report.insecure))
        _, answer = introduction.ask(introduction.make_wish(self._guest, self._thread, info, memory, check=True))
        report.encryption = introduction.encryption
        if not isinstance(answer, Checked):
            raise ProtocolError(f"the receiver at {self._uri} answered {type(answer).__name__} to a check")
        _logger.info("the receiver found %s to mend", _count(answer.mismatches))
        return [*mismatches, *answer.mismatches]

    def _option_mismatches(self, kind: str) -> Iterator[Mismatch]:
        """Options that the guest here cannot have."""
        checks: dict[str, Callable[[], object]] = {
            "--tracker": lambda: self._thread.call(self._guest.check_dirty_log, self._config.tracker)
        }
        if self._config.auto_converge:
            checks["--auto-converge"] = lambda: check_throttle(self._guest, self._thread, kind)
        for option, check in checks.items():
            try:
                check()
            except RefusedError as error:
                yield Mismatch(option, "", "", str(error))


def _count(mismatches: Sequence[Mismatch]) -> str:
    return "one thing" if len(mismatches) == 1 else f"{len(mismatches)} things" if mismatches else "nothing"
