# SPDX-License-Identifier: Apache-2.0
"""Every mismatch is found, and each is named."""

from __future__ import annotations

import msgspec
import pytest

from parmig.engine.agreement.agreement import (
    CAPABILITIES,
    agreed_codecs,
    agreed_credit_bytes,
    agreed_version,
    check_accept,
    check_configure,
    has_long_batches,
    offer,
    reconnect_ns_of,
)
from parmig.engine.matching.block_pairs import block_mismatches, pair_blocks
from parmig.engine.messages.peer_messages import Accept, Configure, DataEndpoint
from parmig.engine.reporting.mismatch import Mismatch
from parmig.errors import ProtocolError
from parmig.guests.guest import GuestInfo, Trait
from parmig.ram.blocks import GuestRange, RamBlock
from parmig.ram.codecs.registry import names
from parmig.ram.credit import long_credit_bytes

INFO = GuestInfo("qemu", "pc-q35-9.2", "QEMU 9.2")


def block(name: str, mib: int = 1, **fields: object) -> RamBlock:
    size = mib << 20
    return msgspec.structs.replace(RamBlock(name, size, ranges=(GuestRange(0, 0, size),)), **fields)


BLOCKS = (block("pc.ram", 64), block("vga.vram", 16))
WISH = Configure(
    parmig="0",
    kind="qemu",
    machine="pc-q35-9.2",
    blocks=BLOCKS,
    allocated_bytes=0,
    workers=2,
    transport="zmq",
    codec="lz4",
    batch_bytes=1 << 20,
    credit_bytes=6 << 20,
    region_pages=512,
    running=True,
    verify=False,
    switchover_timeout_ns=30 * 10**9,
    capabilities=CAPABILITIES,
)
END = DataEndpoint("", 1)
ANSWER = Accept("0", "qemu", "pc-q35-9.2", BLOCKS, "lz4", bytes(16), END, (END, END), CAPABILITIES)

GUESTS: list[tuple[dict[str, object], str, str, str]] = [
    ({"kind": "synthetic"}, "guest kind", "'synthetic'", "'qemu'"),
    ({"machine": "pc-q35-8.0"}, "machine type", "'pc-q35-8.0'", "'pc-q35-9.2'"),
    ({"blocks": BLOCKS[:1]}, "RAM block 'vga.vram'", "", "16 MiB"),
    ({"blocks": (*BLOCKS, block("rom"))}, "RAM block 'rom'", "1 MiB", ""),
    ({"blocks": (BLOCKS[0], block("vga.vram", 32))}, "RAM block 'vga.vram': memory size", "32 MiB", "16 MiB"),
    (
        {"blocks": (BLOCKS[0], block("vga.vram", 16, ranges=(GuestRange(4096, 0, 16 << 20),)))},
        "RAM block 'vga.vram': guest physical addresses",
        "0x1000",
        "0x0",
    ),
    ({"blocks": (*BLOCKS, BLOCKS[1])}, "RAM block names", "2 for 3 blocks", "2 for 2 blocks"),
    *(
        (
            {"capabilities": tuple(one for one in CAPABILITIES if one != name)},
            f"capability '{name}'",
            "",
            "present",
        )
        for name in CAPABILITIES
    ),
]
"""Changed fields of a message, what does not match, what its sender has, and what the other side has."""


def test_sides_that_match_have_nothing_to_say() -> None:
    assert check_configure(WISH, INFO, BLOCKS, {}) == []
    assert check_accept(ANSWER, WISH, INFO) == []


def test_the_order_of_blocks_and_the_monitor_do_not_matter() -> None:
    assert check_configure(WISH, GuestInfo("qemu", "pc-q35-9.2", "QEMU 10"), BLOCKS[::-1], {}) == []


def test_capabilities_that_we_do_not_know_do_not_matter() -> None:
    assert (
        check_configure(msgspec.structs.replace(WISH, capabilities=(*CAPABILITIES, "teleport")), INFO, BLOCKS, {}) == []
    )


@pytest.mark.parametrize(
    ("fields", "what", "there", "here"),
    [
        *GUESTS,
        ({"codec": "rar"}, "compression", "'rar'", "only none, lz4, zstd, delta"),
        ({"transport": "pigeon"}, "transport", "'pigeon'", "only zmq, tcp, unix"),
        ({"credit_bytes": 4096}, "credit", "4096 bytes", "at least one batch of 1048576 bytes"),
    ],
)
def test_each_wish_that_cannot_be_met_is_named(fields: dict[str, object], what: str, there: str, here: str) -> None:
    (found,) = check_configure(msgspec.structs.replace(WISH, **fields), INFO, BLOCKS, {})
    assert (found.what, found.source, found.destination) == (what, there, here)
    assert found.advice


@pytest.mark.parametrize(
    ("fields", "what", "there", "here"),
    [
        *GUESTS,
        ({"codec": "none"}, "compression", "'none'", "'lz4'"),
        ({"data": (END,)}, "workers", "1", "2"),
    ],
)
def test_each_difference_in_the_answer_is_named(fields: dict[str, object], what: str, there: str, here: str) -> None:
    (found,) = check_accept(msgspec.structs.replace(ANSWER, **fields), WISH, INFO)
    assert (found.what, found.source, found.destination) == (what, here, there)
    assert found.advice


@pytest.mark.parametrize(("kind", "found"), [("qemu", ["devices"]), ("kvm", [])])
def test_traits_are_compared_between_guests_of_one_kind(kind: str, found: list[str]) -> None:
    wish = msgspec.structs.replace(WISH, kind=kind, traits={"devices": ("a",)})
    here = {"devices": Trait(("b",), "do")}
    mismatches = check_configure(wish, INFO, BLOCKS, here)
    assert [one.what for one in mismatches if one.what != "guest kind"] == found


@pytest.mark.parametrize("size", [0, -4096, 4097])
def test_blocks_of_odd_sizes_are_refused_even_when_both_have_them(size: int) -> None:
    odd = (RamBlock("odd", size),)
    (found,) = check_configure(msgspec.structs.replace(WISH, blocks=odd), INFO, odd, {})
    assert "'odd'" in found.what
    assert "whole pages" in found.destination


@pytest.mark.parametrize(
    ("theirs", "agreed"),
    [
        (("codec-none", "codec-lz4"), ("none", "lz4")),
        (("codec-delta", "codec-zstd", "codec-auto"), ("lz4", "zstd", "delta")),
        (("codec-rar", "codec-none"), ("none", "lz4")),  # what the source wishes is agreed in any case
        ((), ("lz4",)),
    ],
)
def test_codecs_that_both_sides_know_are_agreed(theirs: tuple[str, ...], agreed: tuple[str, ...]) -> None:
    assert agreed_codecs(msgspec.structs.replace(WISH, capabilities=(*CAPABILITIES, *theirs))) == agreed


@pytest.mark.parametrize(
    ("first", "named", "agreed"),
    [
        (2, (), 2),  # the release before version 3
        (2, ("protocol-3",), 3),  # this release
        (3, ("protocol-4",), 3),  # the next one begins with what both speak
        (1, ("protocol-2",), 2),
    ],
)
def test_the_newest_version_that_both_sides_speak_is_agreed(first: int, named: tuple[str, ...], agreed: int) -> None:
    assert agreed_version((*CAPABILITIES, *named), first) == agreed


@pytest.mark.parametrize(("first", "named"), [(1, ()), (1, ("protocol-1",)), (4, ("protocol-5",))])
def test_without_a_common_version_both_are_named(first: int, named: tuple[str, ...]) -> None:
    with pytest.raises(ProtocolError, match=rf"the peer speaks protocol version {first}, this parmig versions 2 and 3"):
        agreed_version(named, first)


@pytest.mark.parametrize(("scheme", "found"), [("", []), ("zmq+tcp", []), ("tcp", [("transport", "zmq+tcp", "tcp")])])
def test_the_endpoints_are_of_the_agreed_transport(scheme: str, found: list[tuple[str, ...]]) -> None:
    ends = (DataEndpoint("", 1), DataEndpoint("", 2, scheme))
    mismatches = check_accept(msgspec.structs.replace(ANSWER, data=ends), WISH, INFO)
    assert [(one.what, one.source, one.destination) for one in mismatches] == found


def test_a_side_offers_what_it_must_do_and_the_codecs_that_it_knows() -> None:
    usual = (
        *CAPABILITIES,
        "endpoint-schemes",
        "verify-after",
        "ask-for-guest",
        "reconnect",
        "paths",
        "session-proof",
        "long-batches",
        "memory-in-place",
        "direct-copy",
        "protocol-3",
        *(f"codec-{name}" for name in names()),
    )
    assert offer("") == offer("migrate") == usual
    assert set(usual) - set(offer("", verify_after=False)) == {"verify-after"}
    assert offer("devices") == (*usual, "state-devices")


@pytest.mark.parametrize(
    ("transport", "source", "destination", "agreed"),
    [
        ("tcp", "long-batches", "long-batches", True),
        ("zmq", "long-batches", "long-batches", False),  # ZeroMQ allocates each message
        ("tcp", "fence", "long-batches", False),
        ("tcp", "long-batches", "fence", False),
    ],
)
def test_batches_are_long_where_both_sides_know_them_and_the_transport_places_them(
    transport: str, source: str, destination: str, agreed: bool
) -> None:
    wish = msgspec.structs.replace(WISH, transport=transport, capabilities=(source,))
    assert has_long_batches(wish, (destination,)) == agreed
    credit = long_credit_bytes(wish.batch_bytes) if agreed else wish.credit_bytes
    assert agreed_credit_bytes(wish, (destination,)) == credit
    assert agreed_credit_bytes(msgspec.structs.replace(wish, credit_bytes=64 << 20), (destination,)) == 64 << 20


def test_a_source_names_how_long_an_outage_may_last() -> None:
    assert set(offer("", reconnect_ns=0)) == set(offer("")) - {"reconnect"}
    assert set(offer("", reconnect_ns=1_500_000_000)) - set(offer("")) == {"reconnect-1500", "resume"}
    assert set(offer("", resumable=True)) - set(offer("")) == {"resume"}
    assert reconnect_ns_of(offer("", reconnect_ns=1_500_000_000)) == 1_500_000_000
    for offered in ((), ("reconnect",), ("reconnect-",), ("reconnect-x",), ("reconnect--1",), ("reconnect-٣",)):
        assert reconnect_ns_of(offered) == 0
    assert reconnect_ns_of(("reconnect-999999999",)) == 24 * 3600 * 10**9
    assert reconnect_ns_of(("reconnect-9999999999",)) == 0


@pytest.mark.parametrize("state", ["", "migrate", "devices"])
def test_both_sides_take_device_state_in_one_way(state: str) -> None:
    info = msgspec.structs.replace(INFO, state=state)
    wish = msgspec.structs.replace(WISH, capabilities=offer(state))
    answer = msgspec.structs.replace(ANSWER, capabilities=offer(state))
    assert check_configure(wish, info, BLOCKS, {}) == check_accept(answer, wish, info) == []


@pytest.mark.parametrize(("source", "destination"), [("devices", "migrate"), ("migrate", "devices"), ("", "devices")])
def test_another_way_of_device_state_is_named_by_either_side(source: str, destination: str) -> None:
    wish = msgspec.structs.replace(WISH, capabilities=offer(source))
    answer = msgspec.structs.replace(ANSWER, capabilities=offer(destination))
    ways = (source or "migrate", destination)
    advice = f"add ,state={ways[0]} or ,state={ways[1]} to both guests"
    expected = [Mismatch("device state", *ways, advice)]
    assert check_configure(wish, msgspec.structs.replace(INFO, state=destination), BLOCKS, {}) == expected
    assert check_accept(answer, wish, msgspec.structs.replace(INFO, state=source)) == expected


def test_all_mismatches_are_told_together() -> None:
    wish = msgspec.structs.replace(WISH, machine="x", codec="rar", capabilities=(), blocks=(block("a"),))
    found = check_configure(wish, INFO, BLOCKS, {})
    assert len(found) == 1 + 1 + len(CAPABILITIES) + 3


def test_pages_of_another_size_are_no_mismatch() -> None:
    assert (
        check_configure(
            WISH, INFO, [block(one.name, one.size_bytes >> 20, page_size_bytes=2 << 20) for one in BLOCKS], {}
        )
        == []
    )


def test_blocks_of_other_names_match_where_the_guest_sees_them() -> None:
    here = [block("pc.ram", 64), block("vga.vram", 16, ranges=()), block("pc.bios", 1, ranges=())]
    there = [block("vga.vram", 16, ranges=()), block("ram0", 64), block("pc.bios", 1, ranges=())]
    assert pair_blocks(here, there, by_place=True) == [(here[0], there[1]), (here[1], there[0]), (here[2], there[2])]
    assert block_mismatches(here, there, by_place=True) == []
    assert [found.what for found in block_mismatches(here, there)] == ["RAM block 'pc.ram'", "RAM block 'ram0'"]


def test_blocks_that_the_guest_does_not_see_match_by_name_only() -> None:
    here, there = [block("rom", 1, ranges=())], [block("other", 1, ranges=())]
    assert pair_blocks(here, there, by_place=True) == [(here[0], None), (None, there[0])]
    assert len(block_mismatches(here, there, by_place=True)) == 2


def test_regions_that_are_too_many_are_refused() -> None:
    blocks = (block("pc.ram", 8 << 20),)
    wish = msgspec.structs.replace(WISH, blocks=blocks, region_pages=64)
    (found,) = check_configure(wish, INFO, blocks, {})
    assert (found.what, found.source) == ("regions", "33554432 of 64 pages")
    assert check_configure(msgspec.structs.replace(wish, region_pages=16384), INFO, blocks, {}) == []
