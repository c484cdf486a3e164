# SPDX-License-Identifier: Apache-2.0
"""Introduces a source to the destination: its first message, and the answer."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence

import msgspec

from parmig import logs
from parmig.config import SendConfig
from parmig.engine.agreement.agreement import SESSION_PROOF, check_accept, offer, wished_codec
from parmig.engine.channels.control import ControlChannel
from parmig.engine.channels.securing import check_encrypted, is_insecure, prepare, security_of
from parmig.engine.guest_thread import GuestThread
from parmig.engine.matching.in_place import OfferedFile
from parmig.engine.matching.traits import describe
from parmig.engine.messages import peer_messages
from parmig.engine.messages.peer_messages import Accept, Checked, Configure
from parmig.engine.one_host.memory_files import close_files, offer_files
from parmig.engine.reporting.encryption_report import EncryptionReport, encryption_report
from parmig.engine.reporting.mismatch import joined
from parmig.engine.reporting.report import Report
from parmig.engine.source_plan.source_steps import cannot_throttle
from parmig.errors import PeerFailedError, PeerRefusedError, ProtocolError
from parmig.guests.guest import Guest, GuestInfo
from parmig.ram.blocks import BlockMemory
from parmig.ram.credit import credit_bytes
from parmig.ram.reach.open_reach import allocated_bytes
from parmig.ram.regions import region_pages_for
from parmig.transport.registry import AUTO, OLDEST_TRANSPORT, chosen_transport, open_control
from parmig.transport.transport import UNIX_SCHEME, Endpoint
from parmig.units import NS_PER_S
from parmig.version import __version__

_logger = logging.getLogger(__name__)

CONFIGURE_LIMIT_NS = 20 * NS_PER_S
"""How long the destination may take to check the configuration and start its workers."""

LINGER_MS = 500
"""How long the last message may take to leave."""


class Introduction:
    """Introduces a source to the receiver at *endpoint*.

    Args:
        endpoint: of the receiver's control port.
        config: how the source wishes to migrate.
        opened: closes the connection at the end.
        interrupt: called several times a second while the answer is awaited; raises to end the wait.

    Attributes:
        control: the channel to the destination, or None before the connection was made.
        files: descriptors that came with its answer; *opened* closes them.
        encryption: of the control channel.
    """

    def __init__(
        self, endpoint: Endpoint, config: SendConfig, opened: contextlib.ExitStack, interrupt: Callable[[], None]
    ) -> None:
        self.control: ControlChannel | None = None
        self._endpoint = endpoint
        self._config = config
        self._opened = opened
        self._interrupt = interrupt
        self._security = security_of(config, endpoint)
        self.encryption: EncryptionReport | None = None
        self._fds: list[int] = []
        self.files: list[int] = []
        opened.callback(close_files, self.files)

    def prepare(self, report: Report) -> list[str]:
        """Read the keys, and note in *report* whether there are none although the destination is another host.

        Returns:
            A line for each certificate of this side that ends soon.

        Raises:
            UsageError: the pages would not be encrypted.
            HostRefusedError: the keys cannot be used.
        """
        report.insecure = is_insecure(self._security, self._endpoint)
        if self._security is not None:
            check_encrypted(self._config.transport)
        return prepare(self._security, "client")

    def make_wish(
        self, guest: Guest, thread: GuestThread, info: GuestInfo, memory: Sequence[BlockMemory], *, check: bool = False
    ) -> Configure:
        """What the destination learns of the guest and of the configuration.

        Args:
            guest: asked in *thread*.
            info, memory: of the guest.
            check: only ask whether a migration would work.

        Raises:
            GuestError: the guest did not answer.
        """
        config = self._config
        files: tuple[OfferedFile, ...] = ()
        if self._endpoint.scheme == UNIX_SCHEME:
            files, self._fds = offer_files(memory, thread.call(guest.lasting_blocks))
        blocks = tuple(part.block for part in memory)
        return Configure(
            parmig=__version__,
            kind=info.kind,
            machine=info.machine,
            blocks=blocks,
            allocated_bytes=allocated_bytes(memory),
            workers=config.workers,
            transport=chosen_transport(config.transport, self._endpoint, config.paths),
            codec=wished_codec(config.compress),
            batch_bytes=config.batch_bytes,
            credit_bytes=credit_bytes(config.batch_bytes),
            region_pages=region_pages_for(blocks, config.workers),
            running=thread.call(guest.is_running),
            verify=bool(config.compares),
            switchover_timeout_ns=config.switchover_timeout_ns,
            capabilities=offer(
                info.state,
                config.compress,
                verify_after=config.compares == "after",
                reconnect_ns=0 if self._endpoint.scheme == UNIX_SCHEME else config.reconnect_timeout_ns,
            ),
            traits=describe(thread.call(guest.traits)),
            check=check,
            files=files,
        )

    def ask(self, wish: Configure) -> tuple[Configure, Accept | Checked]:
        """Connect, send *wish*, and wait for the answer. An older receiver is asked again in a way that it knows.

        Returns:
            The wish that was answered last, and the answer.

        Raises:
            PeerRefusedError: the destination refused, or is too old to check.
            PeerFailedError: it failed.
            TransportError: it cannot be reached, or was lost.
            LimitExceededError: it did not answer.
            ProtocolError: it answered something else.
        """
        answer = self._answer(wish)
        while isinstance(answer, peer_messages.Refuse):
            older = for_older_peer(wish, answer.reason, self._config.transport)
            if older is None:
                break
            if wish.check and not older.check:
                raise PeerRefusedError(
                    f"the receiver at {self._endpoint} is an older parmig, which cannot check; install this version "
                    "there, or leave out --check: it compares what it knows before it touches anything"
                )
            _logger.info("the receiver is an older parmig; it is asked again without what it does not know")
            wish = older
            answer = self._answer(wish)
        match answer:
            case Accept() | Checked():
                self._check_proof(answer)
                return wish, answer
            case peer_messages.Refuse(reason=reason):
                raise PeerRefusedError(f"the destination refused: {reason}")
            case peer_messages.Failure(error=report):
                raise PeerFailedError(f"the destination failed: {report.message}")
        raise ProtocolError(f"the destination answered {type(answer).__name__} to the configuration")

    def _check_proof(self, answer: Accept | Checked) -> None:
        """Raise PeerRefusedError if there are keys, and the destination would have a channel send its secret."""
        if self._security is not None and isinstance(answer, Accept) and SESSION_PROOF not in answer.capabilities:
            raise PeerRefusedError(
                f"the receiver at {self._endpoint} has keys, but its channels do not prove their session; "
                "install the same parmig on both hosts"
            )

    def _answer(self, wish: Configure) -> peer_messages.ControlMessage:
        transport = open_control(
            self._endpoint,
            "control channel",
            heartbeat=True,
            max_message_bytes=peer_messages.MAX_CONTROL_BYTES,
            security=self._security,
        )
        self.control = ControlChannel(transport, security=self._security)
        self._opened.callback(self.control.close, linger_ms=LINGER_MS)
        _logger.info("connects to %s", self._endpoint)
        transport.connect(self._endpoint, timeout_ns=self._config.connect_timeout_ns)
        _logger.info("connected to %s", self._endpoint)
        self.control.pin()
        self.encryption = encryption_report(self.control.encryption, wish.transport)
        self.control.write(wish, self._fds)
        what = "the destination's answer to the configuration"
        try:
            answer = self.control.wait(what, CONFIGURE_LIMIT_NS, self._interrupt)
            self.files += transport.take_descriptors()
            return answer
        except ProtocolError as error:
            raise PeerRefusedError(f"{self._endpoint}: {error}") from error


_UNKNOWN_FIELD = "unknown field"
"""Words in the refusal of every parmig that is sent a message with a field that it does not know (msgspec's)."""


def for_older_peer(wish: Configure, reason: str, transport: str) -> Configure | None:
    """*wish* for a destination that refused it for *reason*: without what an older one does not know.

    That is a field, or the transport that parmig chose because the user's *transport* leaves the choice to it.

    None: the reason is another one, or *wish* has nothing of the kind.
    """
    older = wish
    if _UNKNOWN_FIELD in reason:
        older = msgspec.structs.replace(wish, traits={}, check=False)
    elif transport == AUTO and "transport" in reason and wish.transport != "unix":
        older = msgspec.structs.replace(wish, transport=OLDEST_TRANSPORT)
    return older if older != wish else None


def check_throttle(guest: Guest, thread: GuestThread, kind: str) -> None:
    """See whether *guest* can be slowed down, for ``--auto-converge``.

    Raises:
        GuestRefusedError: it cannot.
    """
    if not thread.call(guest.can_throttle):
        raise cannot_throttle(kind)


def agreed(answer: Accept | Checked, wish: Configure, info: GuestInfo) -> Accept:
    """The destination's *answer* to *wish*, once it is checked.

    Args:
        info: of the guest.

    Raises:
        PeerRefusedError: something does not match; every mismatch is named.
    """
    if not isinstance(answer, Accept):
        raise ProtocolError(f"the destination answered {type(answer).__name__} to the configuration")
    mismatches = check_accept(answer, wish, info)
    if mismatches:
        raise PeerRefusedError("the destination does not match: " + joined(mismatches))
    logs.note_session(answer.session)
    return answer
