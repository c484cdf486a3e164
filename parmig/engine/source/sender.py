# SPDX-License-Identifier: Apache-2.0
"""The source side of a migration: agrees with the destination on what is to come, and starts it."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import msgspec

from parmig.config import GUARDIAN_PROGRAM, WORKER_PROGRAMS, SendConfig
from parmig.engine.agreement.agreement import (
    ASK_FOR_GUEST,
    PATHS,
    RECONNECT,
    RESUME,
    SESSION_PROOF,
    VERIFY_AFTER,
    agreed_credit_bytes,
    channel_codecs,
    has_long_batches,
    reconnect_ns_of,
)
from parmig.engine.channels.lasting_channels import ChannelNote, LastingChannels
from parmig.engine.handover.record_keeper import RecordKeeper, first_record
from parmig.engine.hooks import programs
from parmig.engine.matching.in_place import kept_blocks
from parmig.engine.messages import peer_messages
from parmig.engine.messages.peer_messages import Accept
from parmig.engine.one_host.direct import usable_targets
from parmig.engine.one_host.memory_files import without_staying
from parmig.engine.paths.path_search import choose_paths
from parmig.engine.paths.paths import ChosenPaths
from parmig.engine.plan.comparison import Comparison
from parmig.engine.pool import WorkerPool
from parmig.engine.records.handover_record import RecordState
from parmig.engine.records.record_store import RecordStore
from parmig.engine.reporting import error_reports
from parmig.engine.reporting.codec_reports import codec_reports
from parmig.engine.reporting.outages import CONTROL
from parmig.engine.reporting.report import DigestReport, Progress, Report
from parmig.engine.source.introduction import Introduction, agreed, check_throttle
from parmig.engine.source.send_run import SendRun
from parmig.engine.source.source import SourceSide
from parmig.engine.source.state_opening import connect_state
from parmig.engine.source_plan.coordinator import Coordinator
from parmig.engine.work.pinning import Pinning
from parmig.engine.work.policy import limits_of
from parmig.engine.worker_setups import SendSetup, memory_for_workers
from parmig.errors import (
    CancelledError,
    ParmigError,
    PeerLostError,
)
from parmig.guests.guest import Guest
from parmig.processes import warm_up
from parmig.ram.blocks import RamBlock
from parmig.ram.codecs.codec import CodecSettings
from parmig.ram.codecs.registry import codecs_of, names
from parmig.ram.regions import cut
from parmig.ram.shared import SharedArea
from parmig.status import MigrationStatus
from parmig.transport.dial import Route
from parmig.transport.registry import (
    chosen_transport,
    data_scheme,
    transport_imports,
    transport_name,
)
from parmig.transport.transport import UNIX_SCHEME, Endpoint, parse_uri
from parmig.units import NS_PER_MS, format_ms
from parmig.values import Path
from parmig.version import __version__

_logger = logging.getLogger(__name__)


class MigrationSender(SourceSide):
    """Moves *guest* to the receiver at *uri*.

    Args:
        guest: opened by the caller, who also closes it.
        uri: of the receiver's control channel.
        config: how to migrate.
        progress: called now and then, in the thread that called :meth:`start`.
    """

    def __init__(
        self, guest: Guest, uri: str, config: SendConfig, *, progress: Callable[[Progress], None] | None = None
    ) -> None:
        transport = transport_name(config.transport)
        super().__init__(
            guest,
            WorkerPool(WORKER_PROGRAMS[0], "send worker"),
            Report(parmig=__version__, side="source", transport=transport, workers=config.workers),
            tracker=config.tracker,
            switchover_ns=config.switchover_timeout_ns,
            progress=progress,
            hooks=programs(config),
        )
        self._uri = uri
        self._config = config
        self._introduction: Introduction | None = None
        self._in_place: tuple[RamBlock, ...] = ()
        self._copies_directly = False
        self._keeper: RecordKeeper | None = None

    # -- before the guest is touched ------------------------------------------------------------

    def _prepare(self) -> SendRun:
        self._config.check()
        store = self._opened.enter_context(RecordStore(self._config.state_dir))
        warm_up(WORKER_PROGRAMS[0], GUARDIAN_PROGRAM)
        codecs_of(self._config.compress, names())
        endpoint = parse_uri(self._uri)
        self._report.transport = chosen_transport(self._config.transport, endpoint, self._config.paths)
        info, memory = self._look_at_guest()
        if self._config.auto_converge:
            check_throttle(self._guest, self._thread, info.kind)
        self._report.compression = self._config.compress
        introduction = self._introduction = Introduction(endpoint, self._config, self._opened, self._check_cancelled)
        for line in (*introduction.prepare(self._report), f"connecting to {self._uri}"):
            self._tell_progress(Progress(status="setup", message=line))
        wish = introduction.make_wish(self._guest, self._thread, info, memory)
        wish, answer = introduction.ask(wish)
        accept = agreed(answer, wish, info)
        self._report.transport = wish.transport
        self._report.encryption = introduction.encryption
        keeper = self._keep_record(store, accept, endpoint)
        self._in_place = tuple(wish.blocks[number] for number in accept.in_place)
        memory = kept_blocks(memory, accept.in_place)
        wish = without_staying(wish, accept.in_place)
        blocks, workers, control = wish.blocks, wish.workers, introduction.control
        self._report.workers = workers
        assert control is not None
        reconnect_ns = reconnect_ns_of(wish.capabilities) if RECONNECT in accept.capabilities else 0
        notes: deque[ChannelNote] = deque()
        proves, resumable = SESSION_PROOF in accept.capabilities, RESUME in accept.capabilities
        security = control.security
        lasting = LastingChannels(
            accept.session, reconnect_ns, notes, proves=proves, resumable=resumable, security=security
        )
        chosen, line = choose_paths(self._config, accept, anywhere=PATHS in accept.capabilities)
        if line:
            self._tell_progress(Progress(status="setup", message=line))
        elsewhere = chosen.paths if PATHS in accept.capabilities else ()
        control.transport = lasting.calling(CONTROL, control.transport, endpoint, elsewhere)
        regions = cut(blocks, wish.region_pages)
        shared = SharedArea(-1, workers=workers, blocks=blocks, regions=len(regions))
        self._opened.callback(shared.close)
        self._opened.callback(self._note_codecs, shared)
        shared.set_rate(self._config.max_bandwidth_bytes_per_s)
        places, descriptors = memory_for_workers(memory)
        files = introduction.files
        own_fds = 1 + len(descriptors)
        direct = self._config.compress == "none" and usable_targets(accept, files, blocks, own_fds)
        self._copies_directly = direct
        pinning = Pinning(self._config.cpus)
        codec_settings = CodecSettings(self._config.zstd_level, self._config.delta_cache_bytes // workers)
        for number, path in enumerate(chosen.paths):
            shared.set_path_rate(number, path.rate_bytes_per_s)
        for worker, routes in enumerate(self._channels(accept, endpoint, wish.transport, chosen)):
            scheme, host, _ = msgspec.structs.astuple(parse_uri(routes[0].uri))
            cpus = pinning.cpus(worker, local=routes[0].local, remote=host)
            self._worker_cpus.append(cpus)
            setup = SendSetup(
                worker=worker,
                workers=workers,
                blocks=blocks,
                memory=places,
                routes=routes,
                reconnect_ns=reconnect_ns,
                path=chosen.of_worker[worker] if chosen.paths else 0,
                probe_port=accept.state.port,
                session=accept.session,
                security=security,
                proves=proves,
                protocol=control.version,
                compress=self._config.compress,
                codecs=channel_codecs(self._config.compress, accept),
                codec_settings=codec_settings,
                batch_bytes=self._config.batch_bytes,
                credit_bytes=agreed_credit_bytes(wish, accept.capabilities),
                long_batches=has_long_batches(wish, accept.capabilities),
                region_pages=wish.region_pages,
                cpus=cpus,
                connect_timeout_ns=self._config.connect_timeout_ns,
                targets=accept.targets if direct else (),
                target_digests=VERIFY_AFTER in wish.capabilities,
            )
            fds = [shared.fd, *descriptors, *(files if direct else ())]
            self._pool.start(setup, fds, transport_imports(scheme))
        _logger.info(
            "pauses the guest once a pause would take at most %s; gives up on a pause after %s",
            format_ms(self._config.downtime_limit_ns / NS_PER_MS),
            format_ms(self._config.switchover_timeout_ns / NS_PER_MS),
        )
        after = self._compares_after(accept, blocks)
        plan = Coordinator(
            regions,
            workers,
            limits_of(self._config),
            verify=bool(self._config.compares and blocks) and not after,
            remembering="delta" in channel_codecs(self._config.compress, accept),
            replaces=reconnect_ns > 0,
            comparison=Comparison(regions, blocks, workers, in_place=bool(self._in_place)) if after else None,
            may_ask=ASK_FOR_GUEST in accept.capabilities,
        )
        state = connect_state(accept.state, endpoint, lasting, elsewhere, self._opened)
        return SendRun(self._means, plan, memory, shared, state, control, notes, endpoint, keeper)

    def _keep_record(self, store: RecordStore, accept: Accept, endpoint: Endpoint) -> RecordKeeper:
        """Begin the record of this session, which the guardian reads too."""
        record = self._thread.call(first_record, self._guest, accept.session, "source")
        keeper = self._keeper = RecordKeeper(store.create(msgspec.structs.replace(record, peer=str(endpoint))))
        self._custody.record = keeper.path
        return keeper

    def _compares_after(self, accept: Accept, blocks: Sequence[RamBlock]) -> bool:
        """Whether copies of *blocks* are compared after the hand-over; an older destination can only do it before."""
        if self._in_place and self._config.compares:
            line = f"blocks that stay in place are not compared: {', '.join(block.name for block in self._in_place)}"
            self._tell_progress(Progress(status="setup", message=line))
        if not blocks:
            return False
        if self._config.compares != "after" or VERIFY_AFTER in accept.capabilities:
            return self._config.compares == "after"
        line = "the destination is an older parmig: it compares both memories in the pause, which will be longer"
        self._tell_progress(Progress(status="setup", message=line))
        return False

    def _channels(
        self, accept: Accept, control: Endpoint, transport: str, chosen: ChosenPaths
    ) -> Iterator[tuple[Route, ...]]:
        """The ways to the receive worker of each worker: its own path, then those that it may take after a loss."""
        for worker, data in enumerate(accept.data):
            scheme = data.scheme or data_scheme(transport)
            path = chosen.of(worker)
            host = path.remote if path else data.host or control.host
            if scheme == UNIX_SCHEME:
                host = control.host
            self._paths.append(path.addresses if path else host)
            others = chosen.others(worker) if PATHS in accept.capabilities else ()
            ways = [path or Path(host), *others]
            yield tuple(Route(str(Endpoint(scheme, way.remote, data.port)), way.local) for way in ways)

    # -- the end --------------------------------------------------------------------------------

    def _last_steps(self, status: MigrationStatus) -> Sequence[Callable[[], None]]:
        if status is not MigrationStatus.COMPLETED:
            return (self._guest.announce,) if self._config.announce and self._was_rolled_back() else ()
        run = self._run
        if run is not None and run.plan.error is not None:
            return (self._guest.finish_source,)  # the memory here is needed: it was not verified
        return (self._guest.finish_source, *([self._guest.quit] if self._config.quit_source else []))

    def _note_codecs(self, shared: SharedArea) -> None:
        """Add to the report what the workers' codecs did, once the workers have ended."""
        self._report.codecs = codec_reports(shared.codec_figures())

    def _was_rolled_back(self) -> bool:
        """Whether the guest was paused for this migration, and runs here again."""
        run = self._run
        return run is not None and run.may_stand_still and not run.handed_over and not self._custody.problem

    def _farewell(self, status: MigrationStatus, error: ParmigError | None) -> None:
        self._end_record()
        control = self._introduction.control if self._introduction is not None else None
        if control is None:
            return
        plan = self._plan
        compared = plan.source_digest if plan is not None and plan.comparison is not None else None
        message: peer_messages.ControlMessage = peer_messages.Goodbye(compared)
        if status is not MigrationStatus.COMPLETED:
            message = peer_messages.Failure(error_reports.describe_error(error or CancelledError("the source gave up")))
        with contextlib.suppress(PeerLostError):
            control.write(message)

    def _end_record(self) -> None:
        """Close the record. Without a hand-over it says nothing, unless the guest could not be given back."""
        keeper = self._keeper
        if keeper is None:
            return
        if keeper.record.state in (RecordState.RETURNED, RecordState.COMPLETED) and not self._custody.problem:
            keeper.settle()
        keeper.close(keep=keeper.record.state is not RecordState.OPEN or bool(self._custody.problem))

    def _final_report(self, error: ParmigError | None, began_ns: int, ended_ns: int) -> Report:
        report = super()._final_report(error, began_ns, ended_ns)
        report.ram.note_in_place(self._in_place)
        report.ram.direct = self._copies_directly
        plan = self._plan
        if plan is not None:
            report.digest = DigestReport(source=plan.source_digest, destination=plan.peer_digest)
            if report.digest.source is not None and report.digest.destination is not None:
                report.verified = report.digest.source == report.digest.destination
        return report
