# SPDX-License-Identifier: Apache-2.0
"""The source side: carries out what the coordinator decides."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from parmig import logs
from parmig.config import WORKER_PROGRAMS, SendConfig
from parmig.engine import error_reports, events, peer_messages
from parmig.engine.agreement import check_accept, offer, told
from parmig.engine.control import ControlChannel
from parmig.engine.coordinator import Coordinator
from parmig.engine.events import Do
from parmig.engine.peer_messages import Accept, Configure
from parmig.engine.policy import Limits, ThrottleSteps
from parmig.engine.pool import WorkerPool
from parmig.engine.progress import ProgressMeter
from parmig.engine.report import DigestReport, Progress, Report
from parmig.engine.source import SourceSide
from parmig.engine.state_channel import StateSender
from parmig.engine.worker_messages import SendSetup
from parmig.errors import (
    CancelledError,
    GuestRefusedError,
    ParmigError,
    PeerFailedError,
    PeerLostError,
    PeerRefusedError,
    ProtocolError,
)
from parmig.guests.guest import Guest, GuestInfo
from parmig.processes import warm_up
from parmig.ram.blocks import BlockMemory
from parmig.ram.codecs.registry import codec
from parmig.ram.flow import credit_bytes
from parmig.ram.regions import cut, region_pages_for
from parmig.ram.shared import SharedArea
from parmig.status import BEFORE_HAND_OVER, MigrationStatus
from parmig.transport.polling import Poller
from parmig.transport.registry import CONTROL_SCHEME, data_scheme, open_control
from parmig.transport.transport import Endpoint, parse_uri
from parmig.units import NS_PER_MS, NS_PER_S, format_ms
from parmig.version import __version__

_logger = logging.getLogger(__name__)

CONFIGURE_LIMIT_NS = 20 * NS_PER_S
"""For the destination to check the configuration and start its workers."""

MESSAGES_A_TURN = 16
"""So many are heard before the clock and the user: a destination says three in a whole migration."""
SAY_EVERY_NS = 5 * NS_PER_S
"""The destination hears where we are so often, and gives up after a minute without a word."""

STATE_CONNECT_LIMIT_NS = 3 * NS_PER_S


def _limits(config: SendConfig) -> Limits:
    steps = ThrottleSteps(
        config.throttle_initial_percent, config.throttle_increment_percent, config.throttle_max_percent
    )
    return Limits(
        config.downtime_limit_ns,
        config.max_downtime_ns,
        config.timeout_ns,
        steps if config.auto_converge else None,
        config.switchover_timeout_ns,
    )


class MigrationSender(SourceSide):
    """Moves *guest* to the receiver at *uri*.

    Args:
        guest: opened by the caller, who also closes it.
        uri: of the receiver's control channel.
        config: how.
        progress: called now and then, in the thread that called :meth:`start`.
    """

    def __init__(
        self, guest: Guest, uri: str, config: SendConfig, *, progress: Callable[[Progress], None] | None = None
    ) -> None:
        super().__init__(
            guest,
            WorkerPool(WORKER_PROGRAMS[0], "send worker"),
            Report(parmig=__version__, side="source", transport=config.transport, workers=config.workers),
            tracker=config.tracker,
            switchover_ns=config.switchover_timeout_ns,
            progress=progress,
        )
        self._uri = uri
        self._config = config
        self._control: ControlChannel | None = None
        self._state_transport: Any = None
        self._said_ns = 0

    # -- before the guest is touched ------------------------------------------------------------

    def _prepare(self) -> None:
        self._config.check()
        warm_up()
        codec(self._config.compress)
        data_scheme(self._config.transport)
        info, memory = self._look_at_guest()
        if self._config.auto_converge and not self._thread.call(self._guest.can_throttle):
            raise GuestRefusedError(
                f"a {info.kind} guest cannot be slowed down by parmig; leave out --auto-converge, "
                "and allow a longer pause with --max-downtime where it outruns the network"
            )
        blocks = tuple(one.block for one in memory)
        self._report.compression = self._config.compress
        self._tell_progress(Progress(status="setup", message=f"connecting to {self._uri}"))
        endpoint = parse_uri(self._uri)
        transport = open_control(
            endpoint, "control channel", heartbeat=True, max_message_bytes=peer_messages.MAX_CONTROL_BYTES
        )
        self._control = ControlChannel(transport)
        _logger.info("connects to %s", endpoint)
        transport.connect(endpoint, timeout_ns=self._config.connect_timeout_ns)
        _logger.info("connected to %s", endpoint)
        region_pages = region_pages_for(blocks, self._config.workers)
        accept = self.send_configure(info, memory, region_pages)
        regions = cut(blocks, region_pages)
        self._shared = SharedArea(-1, workers=self._config.workers, blocks=blocks, regions=len(regions))
        self._shared.set_rate(self._config.max_bandwidth_bytes_per_s)
        _logger.info(
            "pauses the guest once a pause would take at most %s; gives up on a pause after %s",
            format_ms(self._config.downtime_limit_ns / NS_PER_MS),
            format_ms(self._config.switchover_timeout_ns / NS_PER_MS),
        )
        self._plan = Coordinator(regions, self._config.workers, _limits(self._config), verify=self._config.verify)
        self._meter = ProgressMeter(self._plan, self._shared, self._config.workers)
        self._start_workers(accept, endpoint, memory, region_pages)
        self._connect_state(accept, endpoint)

    def send_configure(self, info: GuestInfo, memory: list[BlockMemory], region_pages: int) -> Accept:
        """Tell the destination what is coming and hear whether it fits; check its answer as well.

        Raises:
            PeerRefusedError: either side found something that does not match; every mismatch is named.
        """
        assert self._control is not None
        config = self._config
        wish = Configure(
            parmig=__version__,
            kind=info.kind,
            machine=info.machine,
            blocks=tuple(one.block for one in memory),
            allocated_bytes=sum(os.fstat(fd).st_blocks * 512 for fd in {one.fd for one in memory}),
            workers=config.workers,
            transport=config.transport,
            codec=config.compress,
            batch_bytes=config.batch_bytes,
            credit_bytes=credit_bytes(config.batch_bytes),
            region_pages=region_pages,
            running=self._thread.call(self._guest.is_running),
            verify=config.verify,
            switchover_timeout_ns=config.switchover_timeout_ns,
            capabilities=offer(),
        )
        self._control.write(wish)
        try:
            answer = self._control.wait(
                "the destination's answer to the configuration", CONFIGURE_LIMIT_NS, self._check_cancelled
            )
        except ProtocolError as error:
            raise PeerRefusedError(f"{self._uri}: {error}") from error
        match answer:
            case Accept():
                mismatches = check_accept(answer, wish, info)
                if mismatches:
                    raise PeerRefusedError("the destination does not match: " + told(mismatches))
                logs.note_session(answer.session)
                return answer
            case peer_messages.Refuse(reason=reason):
                raise PeerRefusedError(f"the destination refused: {reason}")
            case peer_messages.Failure(error=report):
                raise PeerFailedError(f"the destination failed: {report.message}")
        raise ProtocolError(f"the destination answered {type(answer).__name__} to the configuration")

    def _start_workers(self, accept: Accept, control: Endpoint, memory: list[BlockMemory], region_pages: int) -> None:
        assert self._shared is not None
        assert self._control is not None
        for worker, data in enumerate(accept.data):
            path = self._config.paths[worker % len(self._config.paths)] if self._config.paths else None
            host = path.remote if path else data.host or control.host
            self._paths.append(str(path) if path else host)
            setup = SendSetup(
                worker=worker,
                workers=self._config.workers,
                blocks=tuple(one.block for one in memory),
                file_offsets_bytes=tuple(one.file_offset_bytes for one in memory),
                uri=str(Endpoint(data.scheme or data_scheme(self._config.transport), host, data.port)),
                local=path.local if path else "",
                session=accept.session,
                protocol=self._control.version,
                codec=accept.codec,
                batch_bytes=self._config.batch_bytes,
                region_pages=region_pages,
                connect_timeout_ns=self._config.connect_timeout_ns,
            )
            self._pool.start(setup, [self._shared.fd, *(one.fd for one in memory)])
        self._watch(*self._control.pollables())

    def _connect_state(self, accept: Accept, control: Endpoint) -> None:
        endpoint = Endpoint(CONTROL_SCHEME, accept.state.host or control.host, accept.state.port)
        self._state_transport = open_control(endpoint, "state channel", heartbeat=False, max_message_bytes=1 << 16)
        self._state_transport.connect(endpoint, timeout_ns=STATE_CONNECT_LIMIT_NS)
        _logger.info("state channel connected to %s", endpoint)
        self._state = StateSender(self._state_transport, accept.session)

    # -- the loop -------------------------------------------------------------------------------

    def _round_began(self) -> None:
        assert self._plan is not None
        self._said_ns = time.monotonic_ns()
        self._say(peer_messages.Progressed(self._plan.status.value, self._plan.round))

    def _listen(self) -> None:
        assert self._control is not None
        assert self._plan is not None
        if time.monotonic_ns() - self._said_ns > SAY_EVERY_NS and self._plan.status in BEFORE_HAND_OVER:
            self._round_began()  # a sign of life
        try:
            for _ in range(MESSAGES_A_TURN):
                if self._plan.machine.ended or (message := self._control.read()) is None:
                    break
                self._peer_said(message)
        except (PeerLostError, ProtocolError) as error:
            self._fail(error)

    def _peer_said(self, message: peer_messages.ControlMessage) -> None:
        assert self._plan is not None
        match message:
            case peer_messages.Digested(digest=digest):
                self._feed(events.PeerDigested(digest))
            case peer_messages.Loaded(load_ns=load_ns):
                self._feed(events.PeerLoaded(load_ns))
            case peer_messages.Resumed(since_ns=since_ns):
                self._feed(events.PeerResumed(since_ns))
            case peer_messages.Failure(error=report):
                symptom = report.type == PeerLostError.__name__
                error = PeerLostError if symptom else PeerFailedError
                self._fail(error(f"the destination failed: {report.message}"))
            case _:
                self._fail(
                    ProtocolError(f"the destination said {type(message).__name__} while {self._plan.step.value}")
                )

    # -- doing ----------------------------------------------------------------------------------

    def _do(self, what: Do) -> None:
        assert self._plan is not None
        match what:
            case Do.ASK_DIGEST:
                self._say(peer_messages.DigestRequest())
            case Do.RELEASE:
                self._say(peer_messages.Release(self._plan.state_bytes, self._plan.state_digest))
            case Do.HAND_OVER:
                self._custody.disarm()
                self._handed_over = True
                self._watch_peer_only()
                self._say(peer_messages.HandOver(run=self._custody.ran is not False))
            case Do.FINISH | Do.ABANDON | Do.GIVE_UP:
                pass  # the loop ends; tearing down does it

    def _say(self, message: peer_messages.ControlMessage) -> None:
        assert self._control is not None
        try:
            self._control.write(message)
        except PeerLostError as error:
            if isinstance(message, peer_messages.HandOver):  # the transport gave the kernel no whole message
                self._handed_over = False
                self._feed(events.HandOverNotSent(error))
            else:
                self._fail(error)

    def _watch_peer_only(self) -> None:
        """After hand-over only the destination's word counts, whatever becomes of our workers and our copy."""
        assert self._control is not None
        self._poller = Poller(*self._control.pollables(), self._thread.wake_fd)

    def _save_state(self) -> None:
        assert isinstance(self._state, StateSender)
        self._state.early = False
        super()._save_state()

    # -- the end --------------------------------------------------------------------------------

    def _last_steps(self, status: MigrationStatus) -> Sequence[Callable[[], None]]:
        if status is not MigrationStatus.COMPLETED:
            return ()
        return (self._guest.finish_source, *([self._guest.quit] if self._config.quit_source else []))

    def _farewell(self, status: MigrationStatus, error: ParmigError | None) -> None:
        if self._control is None:
            return
        message: peer_messages.ControlMessage = peer_messages.Goodbye()
        if status is not MigrationStatus.COMPLETED:
            message = peer_messages.Failure(error_reports.describe_error(error or CancelledError("the source gave up")))
        try:
            self._control.write(message)
        except ParmigError:
            pass

    def _close(self) -> None:
        if self._state_transport is not None:
            self._state_transport.shutdown()
        if self._control is not None:
            self._control.close(linger_ms=500)

    def _final_report(self, error: ParmigError | None, began_ns: int, ended_ns: int) -> Report:
        report = super()._final_report(error, began_ns, ended_ns)
        if self._plan is not None:
            report.digest = DigestReport(source=self._plan.source_digest, destination=self._plan.peer_digest)
            if report.digest.source is not None and report.digest.destination is not None:
                report.verified = report.digest.source == report.digest.destination
        return report
