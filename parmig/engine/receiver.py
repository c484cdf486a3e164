# SPDX-License-Identifier: Apache-2.0
"""The destination side: checks, starts receive workers, loads the state, and takes over when told."""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import zmq

from parmig.config import WORKER_PROGRAMS, ReceiveConfig
from parmig.engine import messages
from parmig.engine.agreement import CAPABILITIES, check_configure
from parmig.engine.control import ControlChannel
from parmig.engine.guest_thread import GuestThread
from parmig.engine.messages import Configure, ReceiveSetup
from parmig.engine.pool import WorkerPool
from parmig.engine.report import DigestReport, GuestReport, Progress, Report
from parmig.engine.shares import assign
from parmig.engine.state_channel import StateReceiver
from parmig.errors import (
    CancelledError,
    GuestError,
    LimitExceededError,
    ParmigError,
    PeerFailedError,
    PeerLostError,
    PeerRefusedError,
    ProtocolError,
    StateError,
    UsageError,
)
from parmig.guests.base import Guest, GuestInfo
from parmig.processes import warm_up
from parmig.ram.blocks import BlockMapping, BlockMemory
from parmig.ram.digest import combine
from parmig.ram.regions import Region, cut
from parmig.ram.shared import SharedArea
from parmig.status import MigrationStatus, StatusEvent, StatusMachine
from parmig.transport.base import Endpoint, parse_uri
from parmig.transport.registry import open_transport
from parmig.units import NS_PER_MS, NS_PER_S, format_size
from parmig.version import __version__

WORKERS_LIMIT_NS = 15 * NS_PER_S
"""For the receive workers to start and listen."""

GOODBYE_LIMIT_NS = 3 * NS_PER_S
"""For the source's goodbye after the guest was resumed here; its absence changes nothing."""

END_LIMIT_NS = 500 * NS_PER_MS
"""For the source to close first after it was told of a failure."""

POLL_MS = 200

EXPLANATION_NS = 400 * NS_PER_MS
"""A lost connection is a symptom; for so long the source may still tell the cause."""

NOBODY_CAME_NS = 10 * NS_PER_S
"""After so long without a sender one line says where to look. A sender that is refused by a check of its own never
connects, and only its own output says so."""

MAX_STATE_CHUNK_FRAME_BYTES = messages.MAX_STATE_CHUNK_BYTES + 64


class MigrationReceiver:
    """Receives one migration into *guest*.

    Args:
        guest: opened by the caller with ``incoming=True``; the caller also closes it.
        config: where to listen.
        progress: called now and then, in the thread that called :meth:`receive_loop`.
        listening: called once, with the actual URI, when connections are accepted.
    """

    def __init__(
        self,
        guest: Guest,
        config: ReceiveConfig,
        *,
        progress: Callable[[Progress], None] | None = None,
        listening: Callable[[str], None] | None = None,
    ) -> None:
        self._guest = guest
        self._config = config
        self._progress = progress
        self._listening = listening
        self._thread = GuestThread()
        self._cancelled = False
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._control: ControlChannel | None = None
        self._listens_at = ""
        self._hinted = False
        self._state_transport: Any = None
        self._state: StateReceiver | None = None
        self._pool = WorkerPool(WORKER_PROGRAMS[1], "receive worker")
        self._poller = zmq.Poller()
        self._shared: SharedArea | None = None
        self._machine = StatusMachine()
        self._wish: Configure | None = None
        self._regions: list[Region] = []
        self._ports: dict[int, int] = {}
        self._next_port = config.data_ports[0]
        self._digests: dict[int, int] = {}
        self._digest: str | None = None
        self._release: messages.Release | None = None
        self._release_ns = 0
        self._load_began_ns = 0
        self._handed_over = False
        self._resumed_ns = 0
        self._ran_ns = 0
        self._round = 0
        self._met = False
        self._finished = False
        self._suspect: tuple[ParmigError, int] | None = None
        self._report = Report(parmig=__version__, side="destination")

    # -- the caller's side ----------------------------------------------------------------------

    def receive_loop(self) -> Report:
        """Listen, take one migration, and return its report; the guest runs here only on success."""
        began = time.monotonic_ns()
        error: ParmigError | None = None
        try:
            self._listen()
            began = self._await_source()
            while not self._turn():
                pass
        except ParmigError as caught:
            error = caught
            self._machine_failed(caught)
        finally:
            self._tear_down(error)
        return self._final_report(error, began)

    def cancel(self) -> None:
        """Give up, unless hand-over has happened. Safe from a signal handler."""
        self._cancelled = True
        self._thread.wake()

    def _check_cancelled(self) -> None:
        if self._cancelled and not self._handed_over:
            raise CancelledError("cancelled; the guest stays at the source")

    # -- before anything is touched -------------------------------------------------------------

    def _listen(self) -> None:
        self._machine.move(StatusEvent.STARTED)
        endpoint = parse_uri(self._config.listen)
        for host in (endpoint.host, *self._config.paths):
            _check_exposure(host, insecure=self._config.insecure)
        warm_up()
        info = self._thread.call(self._guest.info)
        self._thread.call(self._guest.memory)
        self._report.guest = GuestReport(kind=info.kind, machine=info.machine, monitor=info.monitor)
        transport = open_transport(
            endpoint, self._context, "control channel", heartbeat=True, max_message_bytes=messages.MAX_CONTROL_BYTES
        )
        actual = transport.bind(endpoint)
        self._control = ControlChannel(transport)
        self._listens_at = str(actual)
        for item in [*transport.pollables(), self._thread.wake_fd, self._guest.watch_fd()]:
            if item is not None:
                self._poller.register(item, zmq.POLLIN)
        if self._listening is not None:
            self._listening(self._listens_at)

    def _await_source(self) -> int:
        """Wait for a source that fits; returns when it began to talk."""
        assert self._control is not None
        waiting_since = time.monotonic_ns()
        while True:
            ready = dict(self._poller.poll(POLL_MS))
            self._thread.finished()
            self._nobody_came(time.monotonic_ns() - waiting_since)
            if self._guest.watch_fd() in ready:
                raise GuestError("the guest's virtual machine monitor died while waiting for a source")
            frames = self._control.transport.read()
            if frames is None or messages.peer_version(frames[0]) is None:
                continue  # a stranger, or a port scanner
            self._control.transport.accept()
            self._met = True
            try:
                message = messages.decode_control(frames[0])
                if not isinstance(message, Configure):
                    raise ProtocolError(f"the source began with {type(message).__name__}")
            except ProtocolError as error:
                self._control.write(messages.Refuse(str(error)))
                raise PeerRefusedError(f"refused a source: {error}") from error
            began = time.monotonic_ns()
            self.apply_config(message)
            return began

    def _nobody_came(self, waited_ns: int) -> None:
        """Go on waiting for a source, unless that is to end; after a while say where to look."""
        hint = (
            f"no sender has connected to {self._listens_at} yet; look at the sender's own output, "
            "at the address and port that it was given, and for a firewall between"
        )
        if self._cancelled:
            raise CancelledError(f"cancelled: {hint}")
        if self._config.wait_ns and waited_ns >= self._config.wait_ns:
            raise LimitExceededError(f"gave up after {self._config.wait_ns / NS_PER_S:g} s: {hint}")
        if waited_ns >= NOBODY_CAME_NS and not self._hinted:
            self._hinted = True
            self._tell_progress(Progress(status=self._machine.status.value, message=hint))

    def apply_config(self, wish: Configure) -> None:
        """Check the source's wishes and make everything ready for them.

        Raises:
            PeerRefusedError: something does not match; every mismatch is named, to the source too.
        """
        assert self._control is not None
        info: GuestInfo = self._thread.call(self._guest.info)
        memory = list(self._thread.call(self._guest.memory))
        mismatches = check_configure(wish, info, [one.block for one in memory])
        if not mismatches:
            mismatches = _lack_of_space(memory, wish) + _lack_of_ports(self._config.data_ports, wish.workers)
        if mismatches:
            reason = "; ".join(mismatches)
            self._control.write(messages.Refuse(reason))
            raise PeerRefusedError(f"refused the source: {reason}")
        self._wish = wish
        self._report.workers, self._report.compression, self._report.transport = (
            wish.workers,
            wish.codec,
            wish.transport,
        )
        self._report.guest.memory_bytes = sum(block.size_bytes for block in wish.blocks)
        self._report.guest.page_size_bytes = min(block.page_size_bytes for block in wish.blocks)
        by_name = {one.block.name: one for one in memory}
        ordered = [by_name[block.name] for block in wish.blocks]  # the source's numbering
        self._thread.call(self._guest.prepare_incoming)
        self._make_ready(wish, info, ordered)
        self._machine.move(StatusEvent.CONFIGURED)

    def _make_ready(self, wish: Configure, info: GuestInfo, memory: list[BlockMemory]) -> None:
        assert self._control is not None
        session = secrets.token_bytes(16)
        self._regions = cut(wish.blocks, wish.region_pages)
        self._shared = SharedArea(-1, workers=wish.workers, blocks=wish.blocks, regions=len(self._regions))
        for one in memory:  # what cannot be mapped is refused here, by its name
            BlockMapping(one).close()
        hosts = self._config.paths or (parse_uri(self._config.listen).host,)
        for worker in range(wish.workers):
            setup = ReceiveSetup(
                worker=worker,
                workers=wish.workers,
                blocks=wish.blocks,
                file_offsets_bytes=tuple(one.file_offset_bytes for one in memory),
                uri=str(Endpoint("zmq+tcp", hosts[worker % len(hosts)], self._take_port())),
                session=session,
                codec=wish.codec,
                batch_bytes=wish.batch_bytes,
                credit_bytes=wish.credit_bytes,
                region_pages=wish.region_pages,
            )
            self._pool.start(setup, [self._shared.fd, *(one.fd for one in memory)])
        state_endpoint = self._bind_state(hosts[0], session)
        for item in [*self._pool.pollables(), *self._state_transport.pollables()]:
            self._poller.register(item, zmq.POLLIN)
        self._await_ports(wish.workers)
        self._control.write(
            messages.Accept(
                parmig=__version__,
                kind=info.kind,
                machine=info.machine,
                blocks=tuple(one.block for one in memory),
                codec=wish.codec,
                session=session,
                state=messages.DataEndpoint(_told_host(state_endpoint.host), state_endpoint.port),
                data=tuple(
                    messages.DataEndpoint(_told_host(hosts[worker % len(hosts)]), self._ports[worker])
                    for worker in range(wish.workers)
                ),
                capabilities=CAPABILITIES,
            )
        )

    def _take_port(self) -> int:
        """The next of the configured data ports; 0 when any will do."""
        port = self._next_port
        self._next_port += bool(port)
        return port

    def _bind_state(self, host: str, session: bytes) -> Endpoint:
        self._state_transport = open_transport(
            Endpoint("zmq+tcp", host, 0),
            self._context,
            "state channel",
            heartbeat=False,
            max_message_bytes=MAX_STATE_CHUNK_FRAME_BYTES,
        )
        self._state = StateReceiver(self._state_transport, session, self._early_state)
        endpoint: Endpoint = self._state_transport.bind(Endpoint("zmq+tcp", host, self._take_port()))
        return endpoint

    def _await_ports(self, workers: int) -> None:
        deadline = time.monotonic_ns() + WORKERS_LIMIT_NS
        while len(self._ports) < workers:
            if time.monotonic_ns() > deadline:
                raise LimitExceededError(f"only {len(self._ports)} of {workers} receive workers started in time")
            self._poller.poll(POLL_MS)
            self._check_cancelled()
            self._read_workers()

    # -- the loop -------------------------------------------------------------------------------

    def _turn(self) -> bool:
        """One turn: wait for anything to happen and handle it. Returns whether the migration is over."""
        assert self._control is not None
        assert self._state is not None
        ready = dict(self._poller.poll(POLL_MS))
        self._thread.finished()
        self._check_cancelled()
        if self._finished:
            return True
        if self._resumed_ns and time.monotonic_ns() - self._resumed_ns > GOODBYE_LIMIT_NS:
            return True
        if self._guest.watch_fd() in ready:
            raise GuestError("the guest's virtual machine monitor died during the migration")
        if not self._handed_over:  # afterwards neither is needed any more
            self._read_workers()
            self._receive_state()
        try:
            while not self._finished and (message := self._control.read()) is not None:
                self._source_said(message)
        except PeerLostError as error:
            if not self._handed_over:
                raise PeerLostError(f"the source is gone before hand-over ({error}); the guest stays there") from error
            return bool(self._resumed_ns)
        if not self._handed_over and self._suspect is not None and time.monotonic_ns() >= self._suspect[1]:
            raise self._suspect[0]
        self._try_load()
        return self._finished

    def _receive_state(self) -> None:
        assert self._state is not None
        try:
            self._state.receive()
        except PeerLostError as error:
            self._suspect_that(error)

    def _suspect_that(self, error: PeerLostError) -> None:
        """A lost connection is a symptom: end for it only when the source does not tell the reason soon."""
        self._suspect = self._suspect or (error, time.monotonic_ns() + EXPLANATION_NS)

    def _read_workers(self) -> None:
        for worker, event in self._pool.read():
            match event:
                case messages.WorkerReady(port=port):
                    self._ports[worker] = port
                case messages.WorkerConnected():
                    pass
                case messages.RegionDigests(digests=digests):
                    self._digests |= digests
                    if len(self._digests) == len(self._regions):
                        self._digest = combine(self._digests, len(self._regions))
                        self._say(messages.Digested(self._digest))
                case messages.WorkerFailed(error=report):
                    error = messages.restore_error(report)
                    if not isinstance(error, PeerLostError):
                        raise error
                    self._suspect_that(error)
                case _:
                    raise ProtocolError(f"receive worker {worker} said {type(event).__name__}")

    def _source_said(self, message: messages.ControlMessage) -> None:
        match message:
            case messages.Progressed(status=status, round=round_):
                self._round = round_
                self._tell_progress(Progress(status=status, round=round_))
            case messages.DigestRequest():
                owned = assign([region.pages for region in self._regions], len(self._pool))
                for worker, numbers in enumerate(owned):
                    self._pool.tell(worker, messages.DigestRegions(tuple(numbers)))
            case messages.Release() if self._release is None:
                self._release, self._release_ns = message, time.monotonic_ns()
                self._machine.move(StatusEvent.PAUSED)
                self._machine.move(StatusEvent.RAM_COMPLETE)
            case messages.HandOver(run=run) if self._machine.status is MigrationStatus.DEVICE and self._load_began_ns:
                self._machine.move(StatusEvent.HANDED_OVER)
                self._handed_over = True
                self._watch_guest_and_source_only()
                began = time.monotonic_ns()
                if run:
                    self._begin(lambda: self._resumed(began), self._run_guest)
                else:
                    self._resumed(began)
            case messages.Goodbye():
                self._finished = bool(self._resumed_ns)
            case messages.Failure(error=report):
                if not self._handed_over:
                    raise PeerFailedError(f"the source failed: {report.message}")
            case _:
                raise ProtocolError(f"the source said {type(message).__name__} in status {self._machine.status.value}")

    def _say(self, message: messages.ControlMessage) -> None:
        assert self._control is not None
        try:
            self._control.write(message)
        except PeerLostError as error:
            # Its last words may be waiting to be read. After hand-over the guest runs here, heard or not.
            self._suspect_that(error)

    def _watch_guest_and_source_only(self) -> None:
        assert self._control is not None
        self._poller = zmq.Poller()
        for item in [*self._control.pollables(), self._thread.wake_fd, self._guest.watch_fd()]:
            if item is not None:
                self._poller.register(item, zmq.POLLIN)

    # -- device state ---------------------------------------------------------------------------

    def _early_state(self, data: bytes) -> None:
        self._begin(lambda: None, self._guest.write_state, memoryview(data))

    def _try_load(self) -> None:
        """When RAM is complete and all of the state is here: load it."""
        assert self._state is not None
        release = self._release
        if release is None or self._load_began_ns or self._state.size_bytes < release.size_bytes:
            return
        if (self._state.size_bytes, self._state.digest) != (release.size_bytes, release.digest):
            raise StateError(
                f"device state arrived damaged: {self._state.size_bytes} bytes with digest {self._state.digest}, "
                f"the source saved {release.size_bytes} with {release.digest}"
            )
        self._report.state_bytes = release.size_bytes
        self._load_began_ns = time.monotonic_ns()
        self._begin(self._loaded, self._load)

    def _load(self) -> None:
        assert self._state is not None
        for piece in self._state.held():
            self._guest.write_state(memoryview(piece))
        self._guest.finish_load()

    def _loaded(self) -> None:
        now = time.monotonic_ns()
        self._say(messages.Loaded(self._load_began_ns - self._release_ns, now - self._load_began_ns))

    def _run_guest(self) -> None:
        self._ran_ns = self._guest.resume()

    def _resumed(self, began_ns: int) -> None:
        self._machine.move(StatusEvent.RESUMED)
        self._resumed_ns = now = time.monotonic_ns()
        ran_ns = max(began_ns, min(self._ran_ns or now, now))
        self._say(messages.Resumed(ran_ns - began_ns, now - ran_ns))

    def _begin(self, then: Callable[[], None], function: Callable[..., Any], *arguments: object) -> None:
        """Call the guest in its thread; continue with *then* in the loop. An error ends the loop."""

        def done(future: Future[Any]) -> None:
            try:
                future.result()
            except ParmigError:
                raise
            except Exception as error:
                raise ParmigError(f"{function.__name__}: {type(error).__name__}: {error}") from error
            then()

        self._thread.begin(done, function, *arguments)

    # -- the end --------------------------------------------------------------------------------

    def _machine_failed(self, error: ParmigError) -> None:
        error.phase = error.phase or self._machine.status.value
        if not self._machine.ended:
            self._machine.move(StatusEvent.CANCEL if isinstance(error, CancelledError) else StatusEvent.ERROR)

    def _tear_down(self, error: ParmigError | None) -> None:
        """On every way out: the peer hears of it, a copy that must not run is discarded, the rest given back."""
        # The peer first: the guest may be busy for long, and without the source's hand-over it never runs here.
        if error is not None and self._wish is not None and self._control is not None:
            try:
                self._control.write(messages.Failure(messages.describe_error(error)))
            except ParmigError:
                pass
        if not self._handed_over:
            try:
                self._thread.call(self._guest.discard)
            except Exception as problem:  # everything else must still be given back
                self._tell_progress(Progress(status="failed", message=f"while ending: discard: {problem}"))
        self._pool.close()
        self._thread.close()
        if self._state_transport is not None:
            self._state_transport.shutdown()
        if self._state is not None:
            self._state.close()
        if self._control is not None:
            if error is not None and self._met:
                self._control.await_end(END_LIMIT_NS)
            self._control.close(linger_ms=500)
        self._context.term()
        if self._shared is not None:
            counters = [self._shared.counters(worker) for worker in range(self._report.workers)]
            self._report.ram.sent_pages = sum(one.sent_pages for one in counters)
            self._report.ram.zero_pages = sum(one.zero_pages for one in counters)
            self._report.ram.wire_bytes = sum(one.wire_bytes for one in counters)
            self._report.ram.total_bytes = self._report.guest.memory_bytes
            self._shared.close()

    def _tell_progress(self, progress: Progress) -> None:
        if self._progress is not None:
            self._progress(progress)

    def _final_report(self, error: ParmigError | None, began_ns: int) -> Report:
        report = self._report
        report.total_time_ms = (time.monotonic_ns() - began_ns) / NS_PER_MS
        report.status = self._machine.status.value
        report.digest = DigestReport(destination=self._digest)
        if error is not None:
            report.error = messages.describe_error(error, error.phase)
        return report


def _told_host(host: str) -> str:
    """What the source is told: nothing for a wildcard, it knows how it reached us."""
    return "" if host in ("*", "0.0.0.0", "[::]") else host


def _check_exposure(host: str, *, insecure: bool) -> None:
    """Refuse to listen beyond this host without keys, unless told otherwise."""
    bare = host.strip("[]")
    if insecure:
        return
    try:
        addresses = {entry[4][0] for entry in socket.getaddrinfo(bare, None)} if bare not in ("*", "") else {"0.0.0.0"}
    except OSError as error:
        raise UsageError(f"cannot resolve {host!r} to listen on: {error}") from error
    if not all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in addresses):
        raise UsageError(
            f"{host} is not a loopback address: anyone who reaches it could send a guest, unencrypted; "
            "use a trusted network and say --insecure, or listen on 127.0.0.1 behind a tunnel"
        )


def _lack_of_ports(ports: tuple[int, int], workers: int) -> list[str]:
    """Whether the configured data ports do for so many workers."""
    first, last = ports
    if not first or last - first + 1 > workers:
        return []
    return [
        f"--data-ports {first}-{last} of the destination are too few: {workers} workers and device state need one each"
    ]


def _lack_of_space(memory: list[BlockMemory], wish: Configure) -> list[str]:
    """Whether the file systems of the memory files can take what the source has allocated."""
    fds = {(os.fstat(one.fd).st_dev, os.fstat(one.fd).st_ino): one.fd for one in memory}
    allocated = sum(os.fstat(fd).st_blocks * 512 for fd in fds.values())
    needed = min(wish.allocated_bytes, sum(block.size_bytes for block in wish.blocks)) - allocated
    found = []
    by_device: dict[int, Any] = {os.fstat(fd).st_dev: os.fstatvfs(fd) for fd in fds.values()}
    if all(space.f_blocks for space in by_device.values()):  # memfd has no limit of its own
        free = sum(space.f_bavail * space.f_frsize for space in by_device.values())
        if needed > free:
            found.append(
                f"no space at the destination: the guest needs {format_size(needed)} more in its memory files, "
                f"their file system has {format_size(free)} free"
            )
    return found
