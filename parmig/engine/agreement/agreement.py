# SPDX-License-Identifier: Apache-2.0
"""Compares the configurations of both sides before anything is touched. Pure.

Each function returns every mismatch, so that the user can mend them all at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from parmig.engine.matching import in_place
from parmig.engine.matching.block_pairs import block_mismatches
from parmig.engine.matching.traits import trait_mismatches
from parmig.engine.messages.peer_messages import VERSIONS, Accept, Configure, other_version
from parmig.engine.reporting.mismatch import Mismatch
from parmig.errors import ProtocolError
from parmig.guests.guest import GuestInfo, Trait
from parmig.ram.blocks import PAGE_BYTES, RamBlock
from parmig.ram.codecs import registry as codecs
from parmig.ram.credit import long_credit_bytes
from parmig.transport.registry import data_scheme, data_transports, places_payload
from parmig.units import NS_PER_MS

CAPABILITIES = ("fence", "credit", "post-save-scan", "two-phase-hand-over")
"""What this version does, and the other side must do too."""

ENDPOINT_SCHEMES = "endpoint-schemes"
"""Feature: the destination names the scheme of each endpoint in Accept."""

VERIFY_AFTER = "verify-after"
"""Feature: the destination digests pages as it places them, in the way of ``ram.page_digests``, and answers for them
after the hand-over. A source names it only if its user wants that; it then asks an older destination in the pause."""

PATHS = "paths"
"""Feature: each receive worker listens at all addresses of the destination, and Accept has their list."""

ASK_FOR_GUEST = "ask-for-guest"
"""Feature: a destination that was ready says *refused* for good, and answers a source that lost it and asks."""

RECONNECT = "reconnect"
"""Feature: channels outlive their connections. The source names it with how long an outage may last, in milliseconds:
``reconnect-60000``. A source whose user wants no such thing does not name it."""

RESUME = "resume"
"""Feature: a receiver that was killed may be started again and go on. A source names it if its channels outlive their
connections, a destination if its user wants that. The source then waits for a receiver that has ended, as long as for
any lost connection, and asks what its memory holds."""

SESSION_PROOF = "session-proof"
"""Feature: whoever opens a channel proves that it knows the session, and the other end proves it back. The session's
secret is then sent by no channel but the first one."""

LONG_BATCHES = "long-batches"
"""Feature: where a transport places what arrives, batches of few runs of pages may be long (``ram.credit``)."""

MAX_RECONNECT_MS = 24 * 3600 * 1000
"""Whatever a source announces, the destination keeps nothing for longer than this."""

FEATURES = (
    ENDPOINT_SCHEMES,
    VERIFY_AFTER,
    ASK_FOR_GUEST,
    RECONNECT,
    PATHS,
    SESSION_PROOF,
    LONG_BATCHES,
    in_place.FEATURE,
    in_place.DIRECT_COPY,
)
"""What this version does only if the other side names it too."""


STATE_PREFIX = "state-"
"""Before the way of device state among capabilities. Not a field of Configure, since messages of version 2 refuse
fields that they do not know."""

USUAL_STATES = ("", "migrate")
"""How device state of a guest is taken whose side names nothing, as all sides did in version 2."""


def agreed_version(capabilities: Sequence[str], first: int = VERSIONS[0]) -> int:
    """(destination) The newest protocol version that the source speaks, too.

    Args:
        capabilities: that the source names.
        first: the version of the source's first message. A source from before version 3 names no other.

    Raises:
        ProtocolError: there is none.
    """
    spoken = {first, *(version for version in VERSIONS if f"protocol-{version}" in capabilities)}
    common = spoken.intersection(VERSIONS)
    if not common:
        raise ProtocolError(other_version(first))
    return max(common)


def offer(
    state: str,
    compress: str = "",
    *,
    verify_after: bool = True,
    reconnect_ns: int | None = None,
    resumable: bool = False,
) -> tuple[str, ...]:
    """The capabilities that a side names: what it does, its newest protocol version, the codecs that it knows.

    Args:
        state: how device state of its guest is taken; the usual way is not named.
        compress: (source) what the user chose; only AUTO is named, because no field of Configure can hold it: an older
            destination knows no codec of this name.
        verify_after: (source) whether the user wants that.
        reconnect_ns: (source) how long an outage may last; 0: channels end with their connections.
        resumable: (destination) whether the receiver may be started again if it is killed.
    """
    codec_features = (_codec_feature(name) for name in codecs.names())
    state_features = [f"{STATE_PREFIX}{state}"] if state not in USUAL_STATES else []
    auto = [_codec_feature(compress)] if compress == codecs.AUTO else []
    features = [name for name in FEATURES if verify_after or name != VERIFY_AFTER]
    if reconnect_ns is not None:
        features.remove(RECONNECT)
        features += [f"{RECONNECT}-{reconnect_ns // NS_PER_MS}"] if reconnect_ns else []
    features += [RESUME] if reconnect_ns or resumable else []
    return (*CAPABILITIES, *features, f"protocol-{VERSIONS[-1]}", *codec_features, *auto, *state_features)


def reconnect_ns_of(capabilities: Sequence[str]) -> int:
    """(destination) How long an outage may last, as the source says; 0: its channels end with their connections."""
    names = (name.removeprefix(f"{RECONNECT}-") for name in capabilities if name.startswith(f"{RECONNECT}-"))
    limits = [int(name) for name in names if name.isascii() and name.isdigit() and len(name) < 10]
    return min(max(limits, default=0), MAX_RECONNECT_MS) * NS_PER_MS


def has_long_batches(wish: Configure, capabilities: Sequence[str]) -> bool:
    """Whether batches may be long, by the *wish* of the source and the *capabilities* of the destination."""
    named = LONG_BATCHES in wish.capabilities and LONG_BATCHES in capabilities
    return named and places_payload(wish.transport)


def agreed_credit_bytes(wish: Configure, capabilities: Sequence[str]) -> int:
    """The credit of a channel, by the *wish* of the source and the *capabilities* of the destination.

    A source announces the credit of usual batches, which is all that an older one accepts. Long batches need more.
    """
    if not has_long_batches(wish, capabilities):
        return wish.credit_bytes
    return max(wish.credit_bytes, long_credit_bytes(wish.batch_bytes))


def state_of(capabilities: Sequence[str]) -> str:
    """How device state of the peer's guest is taken."""
    names = (name.removeprefix(STATE_PREFIX) for name in capabilities if name.startswith(STATE_PREFIX))
    return next(names, "")


def state_mismatches(source: str, destination: str) -> list[Mismatch]:
    """Whether device state is taken in another way on the other side."""
    ways = [way or USUAL_STATES[-1] for way in (source, destination)]
    if ways[0] == ways[1]:
        return []
    return [Mismatch("device state", ways[0], ways[1], f"add ,state={ways[0]} or ,state={ways[1]} to both guests")]


def agreed_codecs(wish: Configure) -> tuple[str, ...]:
    """(destination) The codecs that both sides know; a batch may use any of them.

    A source that names none uses only the one that it wishes.
    """
    return tuple(name for name in codecs.names() if name == wish.codec or _codec_feature(name) in wish.capabilities)


def wished_codec(choice: str) -> str:
    """(source) The codec that the destination must know if the user chose *choice*."""
    return "none" if choice == codecs.AUTO else choice


def channel_codecs(choice: str, accept: Accept) -> tuple[str, ...]:
    """(source) The codecs that a channel uses if the user chose *choice*, in the order in which a batch tries them."""
    return codecs.codecs_of(choice, [name for name in codecs.names() if _codec_feature(name) in accept.capabilities])


def choice_of(wish: Configure) -> str:
    """(destination) What the user at the source chose."""
    return codecs.AUTO if _codec_feature(codecs.AUTO) in wish.capabilities else wish.codec


def _codec_feature(name: str) -> str:
    return f"codec-{name}"


MAX_REGIONS = 1 << 20
"""Each costs both sides some bytes: 1 TiB is cut into 16,384."""

_SAME_PARMIG = "install the same parmig on both hosts"


def guest_mismatches(source: tuple[str, str], destination: tuple[str, str]) -> list[Mismatch]:
    """How the guests differ, each given by its kind and machine type."""
    if source[0] != destination[0]:
        return [Mismatch("guest kind", repr(source[0]), repr(destination[0]), "start the same kind of guest on both")]
    if source[1] != destination[1]:
        return [Mismatch("machine type", repr(source[1]), repr(destination[1]), "start both with the same -machine")]
    return []


def memory_mismatches(
    source: Sequence[RamBlock], source_state: str, destination: Sequence[RamBlock], state: str, info: GuestInfo
) -> list[Mismatch]:
    """How the RAM blocks differ; where device state is taken in two ways, other blocks are moved, and only that counts.

    Args:
        source_state, state: how device state is taken at the source and at the destination.
        info: of the guest on this side.
    """
    different = state_mismatches(source_state, state)
    return different or block_mismatches(source, destination, by_place=info.blocks_by_place)


def capability_mismatches(theirs: Sequence[str], side: str) -> list[Mismatch]:
    """Capabilities that the peer lacks, which is the *side*."""
    source, destination = ("", "present") if side == "source" else ("present", "")
    missing = (name for name in CAPABILITIES if name not in theirs)
    return [Mismatch(f"capability {name!r}", source, destination, _SAME_PARMIG) for name in missing]


def check_configure(
    message: Configure, info: GuestInfo, blocks: Sequence[RamBlock], traits: Mapping[str, Trait]
) -> list[Mismatch]:
    """(destination) Everything in the source's wishes that cannot be met.

    Args:
        message: the wishes.
        info, blocks, traits: of the guest here.
    """
    mismatches = guest_mismatches((message.kind, message.machine), (info.kind, info.machine))
    mismatches += memory_mismatches(message.blocks, state_of(message.capabilities), blocks, info.state, info)
    mismatches += capability_mismatches(message.capabilities, "source")
    if message.kind == info.kind:
        mismatches += trait_mismatches(message.traits, traits)
    for what, name, known in (
        ("compression", message.codec, codecs.names()),
        ("transport", message.transport, data_transports()),
    ):
        if name not in known:
            mismatches.append(Mismatch(what, repr(name), f"only {', '.join(known)}", _SAME_PARMIG))
    if message.credit_bytes < message.batch_bytes:
        credit, batch = f"{message.credit_bytes} bytes", f"at least one batch of {message.batch_bytes} bytes"
        mismatches.append(Mismatch("credit", credit, batch, _SAME_PARMIG))
    for block in message.blocks:
        if block.size_bytes <= 0 or block.size_bytes % PAGE_BYTES:
            what = f"RAM block {block.name!r}: memory size"
            mismatches.append(Mismatch(what, f"{block.size_bytes} bytes", "whole pages only", "give it whole pages"))
    regions = sum(-(-block.size_bytes // PAGE_BYTES) for block in message.blocks) // message.region_pages
    if regions > MAX_REGIONS:
        size = f"{regions} of {message.region_pages} pages"
        mismatches.append(Mismatch("regions", size, f"at most {MAX_REGIONS}", _SAME_PARMIG))
    return mismatches


def check_accept(message: Accept, wish: Configure, info: GuestInfo) -> list[Mismatch]:
    """(source) Everything in the destination's answer that does not match."""
    mismatches = guest_mismatches((info.kind, info.machine), (message.kind, message.machine))
    mismatches += memory_mismatches(wish.blocks, info.state, message.blocks, state_of(message.capabilities), info)
    mismatches += capability_mismatches(message.capabilities, "destination")
    if message.codec != wish.codec:
        mismatches.append(Mismatch("compression", repr(wish.codec), repr(message.codec), _SAME_PARMIG))
    mismatches += _staying_mismatches(message, wish)
    workers = in_place.channels(wish.workers, wish.blocks, message.in_place)
    if len(message.data) != workers:
        mismatches.append(Mismatch("workers", str(workers), str(len(message.data)), _SAME_PARMIG))
    scheme = data_scheme(wish.transport)
    for other in sorted({data.scheme for data in message.data} - {"", scheme}):
        mismatches.append(Mismatch("transport", scheme, other, _SAME_PARMIG))
    return mismatches


def _staying_mismatches(message: Accept, wish: Configure) -> list[Mismatch]:
    """Blocks that the destination keeps in place, and that the source did not offer."""
    offered = {file.block for file in wish.files if file.lasting}
    other = sorted(set(message.in_place) - offered)
    return [Mismatch("blocks that stay in place", "not offered", str(other), _SAME_PARMIG)] if other else []
