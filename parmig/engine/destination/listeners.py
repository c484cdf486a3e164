# SPDX-License-Identifier: Apache-2.0
"""What listens for one source at the destination: its receive workers and its state channel."""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from parmig import logs
from parmig.config import WORKER_PROGRAMS, ReceiveConfig
from parmig.engine.agreement.agreement import (
    ENDPOINT_SCHEMES,
    FEATURES,
    PATHS,
    SESSION_PROOF,
    VERIFY_AFTER,
    agreed_codecs,
    agreed_credit_bytes,
    agreed_version,
    has_long_batches,
    offer,
    reconnect_ns_of,
)
from parmig.engine.channels.lasting_channels import ChannelNote, LastingChannels
from parmig.engine.channels.state_channel import HELLO_BYTES, StateReceiver
from parmig.engine.destination.admission import announced_host
from parmig.engine.handover.resume_point import ResumePoint
from parmig.engine.matching.in_place import DIRECT_COPY, MAX_FILES, kept_blocks
from parmig.engine.messages import peer_messages
from parmig.engine.messages.peer_messages import Accept, Configure, DataEndpoint
from parmig.engine.one_host.memory_files import without_staying
from parmig.engine.one_host.writers import Writers
from parmig.engine.paths.path_search import WILDCARDS, listening_hosts, offered_addresses
from parmig.engine.pool import WorkerPool
from parmig.engine.reporting.codec_reports import codec_reports
from parmig.engine.reporting.outages import STATE
from parmig.engine.reporting.report import CodecReport, RamReport
from parmig.engine.work.pinning import Pinning
from parmig.engine.worker_setups import ReceiveSetup, memory_for_workers
from parmig.guests.guest import GuestInfo
from parmig.ram.blocks import BlockMemory
from parmig.ram.reach.open_reach import check_reachable
from parmig.ram.regions import cut
from parmig.ram.shared import NOBODY_YET, SharedArea
from parmig.transport.registry import control_scheme, data_scheme, open_control, transport_imports
from parmig.transport.security.security import Security
from parmig.transport.transport import UNIX_SCHEME, Endpoint, MigrationTransport, parse_uri
from parmig.version import __version__

_logger = logging.getLogger(__name__)

MAX_STATE_CHUNK_FRAME_BYTES = peer_messages.MAX_STATE_CHUNK_BYTES + 64


class Listeners:
    """The receive workers and the state channel of one source, all listening. A failing constructor leaves nothing.

    Args:
        wish: the wishes of the source, already checked.
        memory: of the guest, in the source's numbering.
        in_place: numbers of the blocks that are not copied.
        config: where to listen.
        early: takes state that may be loaded at once.
        notes: what happens to the channels of control and state.
        point: lets another receiver go on if this one is killed; None: none can. If another one had it before, all
            listen where that has listened. Not owned.
        security: of all channels.

    Attributes:
        wish: for the blocks that are copied.
        token: 16 random bytes, the secret of the session: whoever connects must know them.
        pool: the workers.
        state, state_transport: the channel for device state.
        lasting: makes channels outlive their connections, if the source wants that.
        regions: all regions of all blocks.
        passed_files: descriptors that go before the answer, with which the source's workers write to memory here.
    """

    def __init__(
        self,
        wish: Configure,
        memory: Sequence[BlockMemory],
        in_place: tuple[int, ...],
        config: ReceiveConfig,
        early: Callable[[bytes], None],
        notes: deque[ChannelNote],
        point: ResumePoint | None = None,
        security: Security | None = None,
    ) -> None:
        self._point = point
        self._before = point.state if point is not None else None
        self.wish = wish = without_staying(wish, in_place)
        self._blocks, self._in_place = tuple(part.block for part in memory), in_place
        self.token = secrets.token_bytes(16) if point is None else point.token
        logs.note_session(self.token)
        self.pool = WorkerPool(WORKER_PROGRAMS[1], "receive worker")
        self._memory = kept_blocks(memory, in_place)
        control = parse_uri(config.listen)
        self._config = config
        self._hosts = listening_hosts(config)
        self._control_scheme = control_scheme(control)
        # Sockets in the file system are numbered from 1.
        self._next_port = 1 if self._control_scheme == UNIX_SCHEME else config.data_ports[0]
        self._cpus = config.cpus
        self._ports: dict[int, int] = {}
        self._writers = Writers()
        self._targets: tuple[BlockMemory, ...] = ()
        self.passed_files: list[int] = []
        self._scheme = data_scheme(wish.transport)
        self.regions = cut(wish.blocks, wish.region_pages)
        self._keeps_digests = VERIFY_AFTER in wish.capabilities
        self._proves = SESSION_PROOF in wish.capabilities
        self._shared = SharedArea(
            -1,
            workers=wish.workers,
            blocks=wish.blocks,
            regions=len(self.regions),
            page_digests=self._keeps_digests,
        )
        limit_ns = reconnect_ns_of(wish.capabilities)
        self.lasting = LastingChannels(self.token, limit_ns, notes, proves=self._proves, security=security)
        self.state_transport = self._open_state_channel()
        self.state = StateReceiver(
            self.state_transport,
            self.token,
            early,
            max_bytes=config.max_state_bytes,
            proof=self.lasting.proof(STATE),
            lasting=lambda transport: self.lasting.listening(STATE, transport, self.everywhere(self._state_endpoint)),
        )
        self.state.connected = self._before is not None  # its source does not begin anew
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _open_state_channel(self) -> MigrationTransport:
        wish = self.wish
        if self._before is not None:
            self._state_endpoint = Endpoint(self._control_scheme, self._hosts[0], self._before.state_port)
            return self.lasting.taking_up(STATE, self.everywhere(self._state_endpoint))
        return open_control(
            Endpoint(self._control_scheme, self._hosts[0], 0),
            "state channel",
            heartbeat=reconnect_ns_of(wish.capabilities) > 0,
            max_message_bytes=MAX_STATE_CHUNK_FRAME_BYTES,
            first_message_bytes=HELLO_BYTES,
            challenges=self._proves,
            security=self.lasting.security,
        )

    def _start(self) -> None:
        check_reachable(self._memory)  # before the source is let in
        wish = self.wish
        memory, descriptors = memory_for_workers(self._memory)
        direct = self._control_scheme == UNIX_SCHEME and DIRECT_COPY in wish.capabilities and bool(memory)
        if direct and len(descriptors) < MAX_FILES:
            self._targets, self.passed_files = memory, [self._shared.fd, *descriptors]
        if self._point is not None:
            descriptors = [*descriptors, self._point.fd]  # each worker holds its lock
        pinning = Pinning(self._cpus)
        for worker in range(wish.workers):
            if self._before is None:
                self._ports[worker] = self._take_port()
            else:
                self._ports[worker] = self._before.data_ports[worker]
                self._shared.note_placed(worker, NOBODY_YET)
            setup = ReceiveSetup(
                worker=worker,
                workers=wish.workers,
                blocks=wish.blocks,
                memory=memory,
                uri=str(Endpoint(self._scheme, ",".join(self._hosts), self._ports[worker])),
                session=self.token,
                security=self.lasting.security,
                proves=self._proves,
                codecs=agreed_codecs(wish),
                outlives_losses=reconnect_ns_of(wish.capabilities) > 0,
                protocol=agreed_version(wish.capabilities),
                batch_bytes=wish.batch_bytes,
                long_batches=has_long_batches(wish, FEATURES),
                credit_bytes=agreed_credit_bytes(wish, FEATURES),
                region_pages=wish.region_pages,
                page_digests=self._keeps_digests,
                cpus=pinning.cpus(worker, local=self._host(worker)),
                replaces=self._before is not None,
            )
            self.pool.start(setup, [self._shared.fd, *descriptors], transport_imports(self._scheme))
        if self._before is None:
            state = Endpoint(self._control_scheme, self._hosts[0], self._take_port())
            self._state_endpoint = self.state_transport.bind(state)
        _logger.info("state channel listens at %s", self._state_endpoint)

    def everywhere(self, endpoint: Endpoint) -> Endpoint:
        """*endpoint* at all addresses of this side, so that a channel outlives the loss of a path."""
        if endpoint.scheme == UNIX_SCHEME:
            return endpoint
        hosts = dict.fromkeys((endpoint.host, *self._hosts))
        wildcard = next((host for host in hosts if host in WILDCARDS), None)
        return Endpoint(endpoint.scheme, wildcard or ",".join(hosts), endpoint.port)

    def _host(self, worker: int) -> str:
        return self._hosts[worker % len(self._hosts)]

    def _take_port(self) -> int:
        """The next of the configured data ports; 0 when any will do."""
        port = self._next_port
        self._next_port += bool(port)
        return port

    def note_writer(self, pid: int) -> None:
        """Note the process of a send worker, which may write to the memory here itself."""
        if self._targets and pid:
            self._writers.note(pid)

    # -- once they listen ------------------------------------------------------------------------

    def note_port(self, worker: int, port: int) -> None:
        """Note that *worker* listens at *port*; 0: where it was asked to."""
        self._ports[worker] = port or self._ports[worker]

    def replace(self, worker: int) -> None:
        """Start a worker in place of *worker*, which has died. It listens at the same port, and goes on from there."""
        uri = str(Endpoint(self._scheme, ",".join(self._hosts), self._ports[worker]))
        self.pool.replace(worker, uri=uri, replaces=True)

    @property
    def ports(self) -> tuple[int, tuple[int, ...]]:
        """The port of device state, and those of the workers, once they listen."""
        return self._state_endpoint.port, tuple(self._ports[worker] for worker in range(self.wish.workers))

    def accept_message(self, info: GuestInfo) -> Accept:
        """The answer to a source that fits, once every worker listens."""
        wish = self.wish
        scheme = self._scheme if ENDPOINT_SCHEMES in wish.capabilities else ""
        return Accept(
            parmig=__version__,
            kind=info.kind,
            machine=info.machine,
            blocks=self._blocks,
            codec=wish.codec,
            session=self.token,
            state=DataEndpoint(announced_host(self._state_endpoint.host), self._state_endpoint.port),
            data=tuple(
                DataEndpoint(announced_host(self._host(worker)), self._ports[worker], scheme)
                for worker in range(wish.workers)
            ),
            capabilities=offer(info.state, resumable=self._point is not None),
            in_place=self._in_place,
            targets=self._targets,
            addresses=offered_addresses(self._config) if PATHS in wish.capabilities else (),
        )

    def pollables(self) -> list[Any]:
        """What to poll."""
        return [*self.pool.pollables(), *self.state.pollables()]

    def ram_report(self) -> RamReport:
        """What the workers placed."""
        counters = [self._shared.counters(worker) for worker in range(self.wish.workers)]
        return RamReport(
            total_bytes=sum(block.size_bytes for block in self.wish.blocks),
            wire_bytes=sum(worker.wire_bytes for worker in counters),
            sent_pages=sum(worker.sent_pages for worker in counters),
            zero_pages=sum(worker.zero_pages for worker in counters),
            huge_page_bytes=sum(worker.huge_bytes for worker in counters),
        )

    def codec_reports(self) -> list[CodecReport]:
        """What the workers' codecs did."""
        return codec_reports(self._shared.codec_figures())

    def close(self) -> None:
        """End the workers, close the channel, drop the state. Wait for the source's workers that write here."""
        self.pool.close()
        self._writers.wait()
        self.state_transport.shutdown()
        self.state.close()
        self._shared.close()
