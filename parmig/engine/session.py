# SPDX-License-Identifier: Apache-2.0
"""One source's session at the destination: its receive workers and its state channel, from Accept on."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence

from parmig.config import WORKER_PROGRAMS, ReceiveConfig
from parmig.engine import error_reports, peer_messages, worker_messages
from parmig.engine.admission import told_host
from parmig.engine.agreement import agreed_codecs, offer
from parmig.engine.peer_messages import Accept, Configure, DataEndpoint
from parmig.engine.pool import WorkerPool
from parmig.engine.report import RamReport
from parmig.engine.shares import assign
from parmig.engine.state_channel import HELLO_BYTES, StateReceiver
from parmig.engine.worker_messages import ReceiveSetup
from parmig.errors import ParmigError, PeerLostError, ProtocolError
from parmig.guests.guest import GuestInfo
from parmig.ram.blocks import BlockMapping, BlockMemory
from parmig.ram.region_digest import combine
from parmig.ram.regions import cut
from parmig.ram.shared import SharedArea
from parmig.transport.registry import DATA_SCHEME, open_control
from parmig.transport.transport import Endpoint, parse_uri
from parmig.units import NS_PER_MS
from parmig.version import __version__

EXPLANATION_NS = 400 * NS_PER_MS
"""A lost connection is a symptom; for so long the source may still tell the cause."""

MAX_STATE_CHUNK_FRAME_BYTES = peer_messages.MAX_STATE_CHUNK_BYTES + 64


class ReceiveSession:
    """Workers that listen and a state channel that listens. A failing constructor leaves nothing.

    Args:
        wish: what was agreed.
        memory: of the guest, in the source's numbering.
        config: where to listen.
        early: takes state that may be loaded at once.

    Attributes:
        token: 16 random bytes that whoever connects must say.
        digest: of all memory, once it was asked for and every worker has answered.
    """

    def __init__(
        self, wish: Configure, memory: Sequence[BlockMemory], config: ReceiveConfig, early: Callable[[bytes], None]
    ) -> None:
        self.wish = wish
        self.token = secrets.token_bytes(16)
        self.digest: str | None = None
        self.pool = WorkerPool(WORKER_PROGRAMS[1], "receive worker")
        self._memory = memory
        self._early = early
        self._hosts = config.paths or (parse_uri(config.listen).host,)
        self._next_port = config.data_ports[0]
        self._ports: dict[int, int] = {}
        self._connected: set[int] = set()
        self._digests: dict[int, int] = {}
        self._digesting: set[int] = set()
        self._digest_asked = False
        self._suspect: tuple[ParmigError, int] | None = None
        self._regions = cut(wish.blocks, wish.region_pages)
        self._shared = SharedArea(-1, workers=wish.workers, blocks=wish.blocks, regions=len(self._regions))
        self._transport = open_control(
            Endpoint(DATA_SCHEME, self._hosts[0], 0),
            "state channel",
            heartbeat=False,
            max_message_bytes=MAX_STATE_CHUNK_FRAME_BYTES,
            first_message_bytes=HELLO_BYTES,
        )
        self.state = StateReceiver(self._transport, self.token, self._take_early, max_bytes=config.max_state_bytes)
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        for one in self._memory:
            BlockMapping(one).close()  # what cannot be mapped is refused before the source is let in
        wish = self.wish
        for worker in range(wish.workers):
            setup = ReceiveSetup(
                worker=worker,
                workers=wish.workers,
                blocks=wish.blocks,
                file_offsets_bytes=tuple(one.file_offset_bytes for one in self._memory),
                uri=str(Endpoint(DATA_SCHEME, self._host(worker), self._take_port())),
                session=self.token,
                codecs=agreed_codecs(wish),
                batch_bytes=wish.batch_bytes,
                credit_bytes=wish.credit_bytes,
                region_pages=wish.region_pages,
            )
            self.pool.start(setup, [self._shared.fd, *(one.fd for one in self._memory)])
        self._state_endpoint = self._transport.bind(Endpoint(DATA_SCHEME, self._hosts[0], self._take_port()))

    def _host(self, worker: int) -> str:
        return self._hosts[worker % len(self._hosts)]

    def _take_port(self) -> int:
        """The next of the configured data ports; 0 when any will do."""
        port = self._next_port
        self._next_port += bool(port)
        return port

    # -- how far it is --------------------------------------------------------------------------

    @property
    def listens(self) -> bool:
        """Whether every worker listens."""
        return len(self._ports) == self.wish.workers

    @property
    def established(self) -> bool:
        """Whether every worker and the state channel have their peer."""
        return self.state.connected and len(self._connected) == self.wish.workers

    def accept_message(self, info: GuestInfo) -> Accept:
        """What the source is told; once it :attr:`listens`."""
        wish = self.wish
        return Accept(
            parmig=__version__,
            kind=info.kind,
            machine=info.machine,
            blocks=tuple(one.block for one in self._memory),
            codec=wish.codec,
            session=self.token,
            state=DataEndpoint(told_host(self._state_endpoint.host), self._state_endpoint.port),
            data=tuple(DataEndpoint(told_host(self._host(w)), self._ports[w]) for w in range(wish.workers)),
            capabilities=offer(),
        )

    def pollables(self) -> list[int]:
        """What to poll."""
        return [*self.pool.pollables(), *self.state.pollables()]

    def ram_report(self) -> RamReport:
        """What the workers placed."""
        counters = [self._shared.counters(worker) for worker in range(self.wish.workers)]
        return RamReport(
            total_bytes=sum(block.size_bytes for block in self.wish.blocks),
            wire_bytes=sum(one.wire_bytes for one in counters),
            sent_pages=sum(one.sent_pages for one in counters),
            zero_pages=sum(one.zero_pages for one in counters),
        )

    # -- what happens ---------------------------------------------------------------------------

    def turn(self) -> None:
        """Take in what workers and source have said meanwhile.

        Raises:
            ParmigError: the session cannot go on; a lost connection is only told after a while without a better reason.
        """
        for worker, event in self.pool.read():
            self._worker_said(worker, event)
        try:
            self.state.receive()
        except PeerLostError as error:
            self.suspect(error)
        if self._suspect is not None and time.monotonic_ns() >= self._suspect[1]:
            raise self._suspect[0]

    def suspect(self, error: PeerLostError) -> None:
        """A lost connection is a symptom: end for it only when the source does not tell the reason soon."""
        self._suspect = self._suspect or (error, time.monotonic_ns() + EXPLANATION_NS)

    def _worker_said(self, worker: int, event: worker_messages.WorkerEvent) -> None:
        match event:
            case worker_messages.WorkerReady(port=port):
                self._ports[worker] = port
            case worker_messages.WorkerConnected():
                self._connected.add(worker)
            case worker_messages.RegionDigests(digests=digests):
                self._digests |= digests
                self._digesting.discard(worker)
                if not self._digesting:
                    self.digest = combine(self._digests, len(self._regions))
            case worker_messages.WorkerFailed(error=report):
                error = error_reports.restore_error(report)
                if not isinstance(error, PeerLostError):
                    raise error
                self.suspect(error)
            case _:
                raise ProtocolError(f"receive worker {worker} said {type(event).__name__}")

    def _take_early(self, data: bytes) -> None:
        if not self.established:
            raise ProtocolError("device state came before every channel was connected")
        self._early(data)

    def ask_digest(self) -> None:
        """Have the workers digest all memory; :attr:`digest` has it when they are done.

        Raises:
            ProtocolError: a second time, or nothing of it was agreed.
        """
        if self._digest_asked or not self.wish.verify:
            raise ProtocolError("the source asked for a digest twice, or without having announced it")
        self._digest_asked = True
        self._digesting = set(range(self.wish.workers))
        for worker, numbers in enumerate(assign([region.pages for region in self._regions], self.wish.workers)):
            self.pool.tell(worker, worker_messages.DigestRegions(tuple(numbers)))

    def close(self) -> None:
        """End the workers, close the channel, drop the state."""
        self.pool.close()
        self._transport.shutdown()
        self.state.close()
        self._shared.close()
