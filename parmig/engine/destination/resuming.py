# SPDX-License-Identifier: Apache-2.0
"""How a receiver goes on in place of one that was killed; and what a receiver keeps so that another one can."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from parmig.config import ReceiveConfig
from parmig.engine.agreement.agreement import RESUME
from parmig.engine.channels.control import ControlChannel
from parmig.engine.destination.listeners import Listeners
from parmig.engine.handover.resume_point import ResumePoint, ResumeState, session_name
from parmig.engine.messages.peer_messages import Configure
from parmig.engine.records.record_file import RecordFile
from parmig.engine.records.record_store import RecordStore
from parmig.engine.reporting.outages import CONTROL
from parmig.engine.reporting.report import Progress
from parmig.status import MigrationStatus
from parmig.transport.lasting_ends import LastingListener
from parmig.transport.security.security import Security
from parmig.transport.transport import Endpoint, MigrationTransport

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resuming:
    """What one session has to do with it.

    Args:
        point: what is kept on disk; None: nothing. Owned.
        record: of the receiver in whose place this one goes on; None: the source is new. Not owned.
        security: of the channels of such a source.
    """

    point: ResumePoint | None = None
    record: RecordFile | None = None
    security: Security | None = None

    def control(self, listeners: Listeners, version: int, endpoint: Endpoint) -> ControlChannel:
        """The control channel of a source that had another receiver before. It listens from :meth:`let_in` on."""
        return ControlChannel(listeners.lasting.taking_up(CONTROL, listeners.everywhere(endpoint)), version)

    def let_in(self, listeners: Listeners, control: MigrationTransport) -> None:
        """Let the source in that had another receiver before, now that every worker listens."""
        for channel in (control, listeners.state_transport):
            assert isinstance(channel, LastingListener)
            channel.listens = True
        _logger.info("waits for the source to come back")

    def keep(self, listeners: Listeners, wish: Configure, endpoint: Endpoint) -> None:
        """Keep what another receiver needs, if that is wanted.

        Raises:
            HostRefusedError: it cannot be written.
        """
        if self.point is not None:
            state_port, data_ports = listeners.ports
            security = listeners.lasting.security
            self.point.write(
                ResumeState(
                    token=self.point.token,
                    wish=wish,
                    endpoint=str(endpoint),
                    state_port=state_port,
                    data_ports=data_ports,
                    pinned=security.pinned if security is not None else "",
                )
            )

    def end(self) -> None:
        """From now on no other receiver can go on from here."""
        if self.point is not None:
            self.point.remove()

    def close(self) -> None:
        """Remove what was kept."""
        if self.point is not None:
            self.point.close()


def make_resumable(
    config: ReceiveConfig, wish: Configure, store: RecordStore, show: Callable[[Progress], None]
) -> Resuming:
    """Prepare to keep what another receiver needs, if the user and the source of *wish* want that.

    Raises:
        HostRefusedError: it cannot be kept.
    """
    if not config.resumable:
        return Resuming()
    status = MigrationStatus.SETUP.value
    if RESUME not in wish.capabilities:
        line = "this session cannot be resumed: the source is an older parmig, or has --reconnect-timeout 0s"
        show(Progress(status=status, message=line))
        return Resuming()
    point = ResumePoint.create(store)
    session = session_name(point.token)
    line = f"session {session}: if this receiver is killed, start it again with --resume {session}"
    show(Progress(status=status, message=line))
    return Resuming(point)
