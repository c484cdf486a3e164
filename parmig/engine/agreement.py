# SPDX-License-Identifier: Apache-2.0
"""What both sides must agree on before anything is touched: comparing configurations. Pure.

Each function returns every mismatch by name, so that a user mends them in one go.
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
"""What this version does and the other side must do too."""

ENDPOINT_SCHEMES = "endpoint-schemes"
"""Feature: the destination names the scheme of each endpoint in Accept."""

FEATURES = (ENDPOINT_SCHEMES,)
"""What this version does where the other side names it too."""


STATE_PREFIX = "state-"
"""Before the way of device state among capabilities. Not a field of Configure, since messages of version 2 refuse
fields that they do not know."""

USUAL_STATES = ("", "migrate")
"""How device state of a guest is taken whose side names nothing, as all sides did in version 2."""


def agreed_version(capabilities: Sequence[str], first: int = VERSIONS[0]) -> int:
    """(destination) The newest protocol version that the source speaks, too.

    Args:
        capabilities: that the source names.
        first: the version that it began with; alone the only one of a source from before version 3.

    Raises:
        ProtocolError: there is none.
    """
    theirs = {first, *(version for version in VERSIONS if f"protocol-{version}" in capabilities)}
    common = theirs.intersection(VERSIONS)
    if not common:
        raise ProtocolError(other_version(first))
    return max(common)


def offer(state: str) -> tuple[str, ...]:
    """What a side names among its capabilities: what it does, its newest protocol version, the codecs that it knows.

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

MAX_TOLD = 20
"""Mismatches that are listed one by one."""


def told(mismatches: Sequence[str]) -> str:
    """*mismatches* in one line; where they are very many, some of them."""
    more = len(mismatches) - MAX_TOLD
    return "; ".join([*mismatches[:MAX_TOLD], *([f"and {more} more"] if more > 0 else [])])


def guest_mismatches(ours: GuestInfo, kind: str, machine: str) -> list[str]:
    """How the peer's guest differs from ours."""
    found = []
    if kind != ours.kind:
        found.append(f"guest kind: {kind!r} there, {ours.kind!r} here")
    elif machine != ours.machine:
        found.append(f"machine type: {machine!r} there, {ours.machine!r} here (start both with the same -machine)")
    return found


def block_mismatches(ours: Sequence[RamBlock], theirs: Sequence[RamBlock]) -> list[str]:
    """How the peer's RAM blocks differ from ours; their order does not matter."""
    found = []
    here, there = {block.name: block for block in ours}, {block.name: block for block in theirs}
    if len(there) != len(theirs):
        found.append("a RAM block name appears twice there")
    for name in sorted(here.keys() ^ there.keys()):
        found.append(f"RAM block {name!r}: only {'here' if name in here else 'there'} (backend ids must match)")
    for name in sorted(here.keys() & there.keys()):
        a, b = here[name], there[name]
        if a.size_bytes != b.size_bytes:
            found.append(
                f"RAM block {name!r}: memory size {format_size(b.size_bytes)} there, {format_size(a.size_bytes)} here"
            )
        elif a.ranges != b.ranges:
            found.append(f"RAM block {name!r}: guest physical addresses differ")
        if a.page_size_bytes != b.page_size_bytes:
            found.append(f"RAM block {name!r}: page size {b.page_size_bytes} there, {a.page_size_bytes} here")
    return found


def capability_mismatches(theirs: Sequence[str]) -> list[str]:
    """Capabilities that the peer lacks."""
    return [f"capability {name!r}: missing there" for name in CAPABILITIES if name not in theirs]


def check_configure(message: Configure, info: GuestInfo, blocks: Sequence[RamBlock]) -> list[str]:
    """(destination) Everything in the source's wishes that cannot be met."""
    found = guest_mismatches(info, message.kind, message.machine)
    if message.kind == info.kind:
        found += state_mismatches(info, message.capabilities)
    found += block_mismatches(blocks, message.blocks)
    found += capability_mismatches(message.capabilities)
    if message.codec not in codecs.names():
        found.append(f"compression {message.codec!r}: not known here (known: {', '.join(codecs.names())})")
    if message.transport not in data_transports():
        found.append(f"transport {message.transport!r}: not known here (known: {', '.join(data_transports())})")
    if message.credit_bytes < message.batch_bytes:
        found.append(f"credit of {message.credit_bytes} bytes is less than one batch of {message.batch_bytes}")
    for block in message.blocks:
        if block.size_bytes <= 0 or block.size_bytes % PAGE_BYTES:
            found.append(f"RAM block {block.name!r}: {block.size_bytes} bytes are not whole pages")
    regions = sum(-(-block.size_bytes // PAGE_BYTES) for block in message.blocks) // message.region_pages
    if regions > MAX_REGIONS:
        found.append(f"regions of {message.region_pages} pages: {regions} of them, at most {MAX_REGIONS} are allowed")
    return found


def check_accept(message: Accept, wish: Configure, info: GuestInfo) -> list[str]:
    """(source) Everything in the destination's answer that does not match."""
    found = guest_mismatches(info, message.kind, message.machine)
    if message.kind == info.kind:
        found += state_mismatches(info, message.capabilities)
    found += block_mismatches(wish.blocks, message.blocks)
    found += capability_mismatches(message.capabilities)
    if message.codec != wish.codec:
        found.append(f"compression: {message.codec!r} there, {wish.codec!r} here")
    if len(message.data) != wish.workers:
        found.append(f"workers: {len(message.data)} there, {wish.workers} here")
    scheme = data_scheme(wish.transport)
    for other in sorted({data.scheme for data in message.data} - {"", scheme}):
        found.append(f"transport: {other!r} there, {scheme!r} here")
    return found
