# SPDX-License-Identifier: Apache-2.0
"""Compares the configurations of both sides before anything is touched. Pure.

Each function returns every mismatch by name, so that the user can mend them all at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from parmig.engine.peer_messages import VERSIONS, Accept, Configure, other_version
from parmig.errors import ProtocolError
from parmig.guests.guest import GuestInfo
from parmig.ram.blocks import PAGE_BYTES, RamBlock
from parmig.ram.codecs import registry as codecs
from parmig.transport.registry import data_scheme, data_transports
from parmig.units import format_size

CAPABILITIES = ("fence", "credit", "post-save-scan", "two-phase-hand-over")
"""What this version does, and the other side must do too."""

ENDPOINT_SCHEMES = "endpoint-schemes"
"""Feature: the destination names the scheme of each endpoint in Accept."""

FEATURES = (ENDPOINT_SCHEMES,)
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


def offer(state: str) -> tuple[str, ...]:
    """The capabilities that a side names: what it does, its newest protocol version, the codecs that it knows.

    Args:
        state: how device state of its guest is taken; the usual way is not named.
    """
    codec_features = (_codec_feature(name) for name in codecs.names())
    state_features = [f"{STATE_PREFIX}{state}"] if state not in USUAL_STATES else []
    return (*CAPABILITIES, *FEATURES, f"protocol-{VERSIONS[-1]}", *codec_features, *state_features)


def state_mismatches(ours: GuestInfo, theirs: Sequence[str]) -> list[str]:
    """Whether the peer, with capabilities *theirs*, takes device state in another way."""
    here = ours.state or USUAL_STATES[-1]
    names = (name.removeprefix(STATE_PREFIX) for name in theirs if name.startswith(STATE_PREFIX))
    there = next(names, USUAL_STATES[-1])
    if here == there:
        return []
    return [
        f"device state: {there!r} there, {here!r} here (give both guests the same: ,state={here} or ,state={there})"
    ]


def agreed_codecs(wish: Configure) -> tuple[str, ...]:
    """(destination) The codecs that both sides know; a batch may use any of them.

    A source that names none uses only the one that it wishes.
    """
    return tuple(name for name in codecs.names() if name == wish.codec or _codec_feature(name) in wish.capabilities)


def _codec_feature(name: str) -> str:
    return f"codec-{name}"


MAX_REGIONS = 1 << 20
"""Each costs both sides some bytes: 1 TiB is cut into 16,384."""

MAX_LISTED = 20
"""The most mismatches that a message lists."""


def joined(mismatches: Sequence[str]) -> str:
    """*mismatches* in one line; after MAX_LISTED of them, only the number of the others."""
    more = len(mismatches) - MAX_LISTED
    return "; ".join([*mismatches[:MAX_LISTED], *([f"and {more} more"] if more > 0 else [])])


def guest_mismatches(info: GuestInfo, kind: str, machine: str) -> list[str]:
    """How the peer's guest, of *kind* and *machine*, differs from the guest here."""
    if kind != info.kind:
        return [f"guest kind: {kind!r} there, {info.kind!r} here"]
    if machine != info.machine:
        return [f"machine type: {machine!r} there, {info.machine!r} here (start both with the same -machine)"]
    return []


def block_mismatches(blocks: Sequence[RamBlock], peer_blocks: Sequence[RamBlock]) -> list[str]:
    """How the peer's RAM blocks differ from those here. Their order does not matter."""
    mismatches = []
    here, there = {block.name: block for block in blocks}, {block.name: block for block in peer_blocks}
    if len(there) != len(peer_blocks):
        mismatches.append("a RAM block name appears twice there")
    for name in sorted(here.keys() ^ there.keys()):
        mismatches.append(f"RAM block {name!r}: only {'here' if name in here else 'there'} (backend ids must match)")
    for name in sorted(here.keys() & there.keys()):
        a, b = here[name], there[name]
        if a.size_bytes != b.size_bytes:
            mismatches.append(
                f"RAM block {name!r}: memory size {format_size(b.size_bytes)} there, {format_size(a.size_bytes)} here"
            )
        elif a.ranges != b.ranges:
            mismatches.append(f"RAM block {name!r}: guest physical addresses differ")
        if a.page_size_bytes != b.page_size_bytes:
            mismatches.append(f"RAM block {name!r}: page size {b.page_size_bytes} there, {a.page_size_bytes} here")
    return mismatches


def capability_mismatches(capabilities: Sequence[str]) -> list[str]:
    """Capabilities that the peer lacks."""
    return [f"capability {name!r}: missing there" for name in CAPABILITIES if name not in capabilities]


def check_configure(message: Configure, info: GuestInfo, blocks: Sequence[RamBlock]) -> list[str]:
    """(destination) Everything in the source's wishes that cannot be met."""
    mismatches = guest_mismatches(info, message.kind, message.machine)
    if message.kind == info.kind:
        mismatches += state_mismatches(info, message.capabilities)
    mismatches += block_mismatches(blocks, message.blocks)
    mismatches += capability_mismatches(message.capabilities)
    if message.codec not in codecs.names():
        mismatches.append(f"compression {message.codec!r}: not known here (known: {', '.join(codecs.names())})")
    if message.transport not in data_transports():
        mismatches.append(f"transport {message.transport!r}: not known here (known: {', '.join(data_transports())})")
    if message.credit_bytes < message.batch_bytes:
        mismatches.append(f"credit of {message.credit_bytes} bytes is less than one batch of {message.batch_bytes}")
    for block in message.blocks:
        if block.size_bytes <= 0 or block.size_bytes % PAGE_BYTES:
            mismatches.append(f"RAM block {block.name!r}: {block.size_bytes} bytes are not whole pages")
    regions = sum(-(-block.size_bytes // PAGE_BYTES) for block in message.blocks) // message.region_pages
    if regions > MAX_REGIONS:
        mismatches.append(
            f"regions of {message.region_pages} pages: {regions} of them, at most {MAX_REGIONS} are allowed"
        )
    return mismatches


def check_accept(message: Accept, wish: Configure, info: GuestInfo) -> list[str]:
    """(source) Everything in the destination's answer that does not match."""
    mismatches = guest_mismatches(info, message.kind, message.machine)
    if message.kind == info.kind:
        mismatches += state_mismatches(info, message.capabilities)
    mismatches += block_mismatches(wish.blocks, message.blocks)
    mismatches += capability_mismatches(message.capabilities)
    if message.codec != wish.codec:
        mismatches.append(f"compression: {message.codec!r} there, {wish.codec!r} here")
    if len(message.data) != wish.workers:
        mismatches.append(f"workers: {len(message.data)} there, {wish.workers} here")
    scheme = data_scheme(wish.transport)
    for other in sorted({data.scheme for data in message.data} - {"", scheme}):
        mismatches.append(f"transport: {other!r} there, {scheme!r} here")
    return mismatches
