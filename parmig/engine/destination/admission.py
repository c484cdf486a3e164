# SPDX-License-Identifier: Apache-2.0
"""Decides which source is admitted at the control port. Nothing here touches a guest.

A stranger can neither end nor block nor starve a receiver that waits. What is not a message is dropped. A source that
does not fit is refused with the reason. The port keeps listening.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from parmig.config import ReceiveConfig
from parmig.engine.agreement.agreement import SESSION_PROOF, agreed_version
from parmig.engine.channels.control import ControlChannel
from parmig.engine.channels.securing import can_encrypt, is_exposed, is_insecure, prepare
from parmig.engine.messages import peer_messages
from parmig.engine.messages.peer_messages import Configure
from parmig.engine.reporting.mismatch import Mismatch, joined
from parmig.errors import ProtocolError, UsageError
from parmig.ram.blocks import BlockMemory
from parmig.transport.registry import data_transports, open_control
from parmig.transport.security.security import Security
from parmig.transport.tcp import TcpTransport
from parmig.transport.transport import UNIX_SCHEME, Endpoint
from parmig.units import NS_PER_S, format_size

_logger = logging.getLogger(__name__)

SHOW_EVERY_NS = NS_PER_S
"""At most one refusal is shown in this time, because anyone who reaches the port can cause them."""


class Admission:
    """The control port, until a source is admitted.

    Args:
        endpoint: where to listen; port 0 takes a free one.
        show: shows a line to the user.
        security: of the port.

    Attributes:
        endpoint: where it listens, with the actual port.
        files: descriptors that came with the source that was heard last; owned here, until the next one.
        refused: why the last refused source was refused; empty: none was.
    """

    def __init__(self, endpoint: Endpoint, show: Callable[[str], None], security: Security | None = None) -> None:
        self.endpoint = endpoint
        self.refused = ""
        self.files: list[int] = []
        self._show = show
        self._security = security
        self._shown_ns = 0
        self._transport: TcpTransport | None = None
        self._version = peer_messages.PROTOCOL_VERSION

    @property
    def secured(self) -> bool:
        """Whether nothing unencrypted is accepted."""
        return self._security is not None

    def check(self, config: ReceiveConfig, hosts: Sequence[str]) -> bool:
        """See whether *config* allows to listen here and, for pages, at *hosts*. Show certificates that end soon.

        Returns:
            Whether guests come from other hosts, and nothing encrypts them.

        Raises:
            UsageError: it does not.
            HostRefusedError: the keys cannot be used.
        """
        if self.endpoint.scheme == UNIX_SCHEME:
            if config.paths:
                raise UsageError(f"--path needs addresses, and {self.endpoint} has none; leave it out")
        elif not (self.secured or config.insecure):
            for host in (self.endpoint.host, *hosts):
                check_exposure(host)
        for line in prepare(self._security, "server"):
            self._show(line)
        return is_insecure(self._security, self.endpoint, hosts)

    def listen(self) -> None:
        """Listen, again if need be, at the same port.

        Raises:
            HostRefusedError: the address cannot be listened on.
        """
        self._transport = open_control(
            self.endpoint,
            "control channel",
            heartbeat=True,
            max_message_bytes=peer_messages.MAX_CONTROL_BYTES,
            first_message_bytes=peer_messages.MAX_CONFIGURE_BYTES,
            security=self._security,
        )
        self.endpoint = self._transport.bind(self.endpoint)
        _logger.info("listens for a source at %s", self.endpoint)

    def pollables(self) -> list[int]:
        """What to poll while listening."""
        return self._transport.pollables() if self._transport is not None else []

    def hear(self) -> Configure | None:
        """The wishes of a source, or None if none has come. Answer them by :meth:`refuse` or :meth:`admit`."""
        assert self._transport is not None
        self.drop_files()
        frames = self._transport.read()
        if distrust := self._transport.take_distrust():
            self.refused = distrust
            self.show(f"did not let in a sender: {distrust}")
        self.files = self._transport.take_descriptors()
        version = peer_messages.peer_version(frames[0]) if frames is not None and len(frames) == 1 else None
        if frames is None or version is None:
            return None  # nobody, or a stranger, whom the next read drops
        self._version = version if version in peer_messages.VERSIONS else peer_messages.PROTOCOL_VERSION
        try:
            message = peer_messages.decode_control(frames[0], first=True)
            if isinstance(message, Configure):
                self._version = agreed_version(message.capabilities, version)
                return message
            raise ProtocolError(f"the source began with {type(message).__name__}")
        except ProtocolError as error:
            self.refuse(str(error))
            return None

    def refuse(self, reason: str) -> None:
        """Send the source the reason why it is not admitted, and show it to the user."""
        assert self._transport is not None
        self._transport.turn_away([peer_messages.encode_control(peer_messages.Refuse(reason), self._version)])
        self.refused = reason
        self.show(f"refused a source: {reason}")

    def answer_check(self, mismatches: Sequence[Mismatch]) -> None:
        """Send a source that only checks all that does not match, and show the user that it came."""
        assert self._transport is not None
        answer = peer_messages.Checked(tuple(mismatches[: peer_messages.MAX_MISMATCHES]))
        self._transport.turn_away([peer_messages.encode_control(answer, self._version)])
        self.show(f"a source checked this receiver: {joined(mismatches) or 'it fits'}")

    def hint(self) -> str:
        """Where to look while no source has got in."""
        if self.refused:
            return f"no sender got in at {self.endpoint}; the last one was refused: {self.refused}"
        return (
            f"no sender has connected to {self.endpoint} yet; look at the sender's own output, "
            "at the address and port that it was given, and for a firewall between"
        )

    def show(self, line: str) -> None:
        """Show a line, not too often."""
        now = time.monotonic_ns()
        if now - self._shown_ns >= SHOW_EVERY_NS:
            self._shown_ns = now
            _logger.info("%s", line)
            self._show(line)

    def admit(self) -> ControlChannel:
        """Take the source that was read last as the peer, and close the port. The caller owns the channel."""
        assert self._transport is not None
        transport, self._transport = self._transport, None
        transport.accept()
        _logger.info("a source was let in, protocol version %d; the port is closed", self._version)
        control = ControlChannel(transport, self._version, self._security)
        control.pin()
        return control

    def close(self) -> None:
        """Stop listening. A message that was sent last still leaves."""
        self.drop_files()
        if self._transport is not None:
            self._transport.shutdown()
            self._transport = None

    def drop_files(self) -> None:
        """Close what came with the source that was heard last. It would keep the source's memory."""
        while self.files:
            os.close(self.files.pop())


def announced_host(host: str) -> str:
    """The host of a listening address, as Accept names it. Empty for a wildcard: the source uses the host that it
    reached. Empty for a path, too.
    """
    return "" if host in ("*", "0.0.0.0", "[::]") or host.startswith("/") else host


def check_exposure(host: str) -> None:
    """Refuse to listen beyond this host without keys.

    Raises:
        UsageError: *host* is not on loopback, or cannot be resolved.
    """
    try:
        exposed = is_exposed(host)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"cannot resolve {host!r} to listen on: {error}") from error
    if exposed:
        raise UsageError(
            f"{host} is not a loopback address: anyone who reaches it could send a guest, unencrypted; "
            "give --keys DIR, as `parmig keygen` makes it, or use a trusted network and say --insecure"
        )


def wrong_transport(wish: Configure, endpoint: Endpoint, *, secured: bool) -> list[Mismatch]:
    """The mismatch if the channels that the source wishes do not fit to *endpoint*, where it came; else none.

    Args:
        secured: whether nothing unencrypted is accepted, and no channel that does not prove its session.
    """
    here = endpoint.scheme == UNIX_SCHEME
    if secured and wish.transport in data_transports() and not can_encrypt(wish.transport):
        found = repr(wish.transport)
        return [Mismatch("transport", found, "a ZeroMQ without CURVE", "give --transport tcp to the sender")]
    if secured and SESSION_PROOF not in wish.capabilities:
        return [Mismatch(f"capability {SESSION_PROOF!r}", "", "present", "install the same parmig on both hosts")]
    if (wish.transport == UNIX_SCHEME) == here:
        return []
    return [Mismatch("transport", repr(wish.transport), "only unix" if here else "not unix", "leave out --transport")]


def lack_of_ports(ports: tuple[int, int], workers: int) -> list[Mismatch]:
    """The mismatch if *ports* are too few for *workers* workers; else no mismatch."""
    first, last = ports
    if not first or last - first + 1 > workers:
        return []
    needed = f"{workers} workers and device state, with one port each,"
    advice = "give more ports to the receiver, or fewer --workers to the sender"
    return [Mismatch(f"--data-ports {first}-{last}", needed, f"{last - first + 1} ports", advice)]


def lack_of_space(memory: list[BlockMemory], wish: Configure) -> list[Mismatch]:
    """The mismatch if the file systems of the memory files cannot hold what the source has allocated; else none."""
    if any(part.pid for part in memory):
        return []  # private memory has no limit that can be known
    fds = {(os.fstat(part.fd).st_dev, os.fstat(part.fd).st_ino): part.fd for part in memory}
    allocated = sum(os.fstat(fd).st_blocks * 512 for fd in fds.values())
    needed = min(wish.allocated_bytes, sum(block.size_bytes for block in wish.blocks)) - allocated
    by_device: dict[int, Any] = {os.fstat(fd).st_dev: os.fstatvfs(fd) for fd in fds.values()}
    if all(space.f_blocks for space in by_device.values()):  # memfd has no limit of its own
        free = sum(space.f_bavail * space.f_frsize for space in by_device.values())
        if needed > free:
            advice = "make room in the file system of the destination's memory files"
            more, rest = f"{format_size(needed)} more for memory", f"{format_size(free)} free"
            return [Mismatch("no space at the destination", more, rest, advice)]
    return []
