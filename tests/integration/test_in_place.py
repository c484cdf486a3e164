# SPDX-License-Identifier: Apache-2.0
"""A guest moves to another monitor of the same host, and its memory stays where it is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from parmig.config import ReceiveConfig, SendConfig
from parmig.engine.channels.control import ControlChannel
from parmig.engine.messages.peer_messages import Accept, Configure
from parmig.engine.reporting.report import Report
from parmig.ram.blocks import PAGE_BYTES
from parmig.transport.transport import parse_uri
from parmig.transport.unix import UnixTransport
from parmig.units import MIB
from tests.integration.sides import (
    Command,
    Discard,
    HeldGuest,
    Migration,
    guests,
    kill,
    listen_uri,
    migrate,
    never_ran,
    runs_on,
    until,
)
from tests.support import PATIENCE_NS


def inodes(guest: HeldGuest) -> list[tuple[int, int]]:
    return [(os.fstat(part.fd).st_dev, os.fstat(part.fd).st_ino) for part in guest.memory()]


def content(guest: HeldGuest) -> list[str]:
    """A digest of each block, without allocating holes."""
    return [hashlib.md5(os.pread(part.fd, part.block.size_bytes, 0)).hexdigest() for part in guest.memory()]


def stayed(source: HeldGuest, destination: HeldGuest, report: Report, there: Report) -> None:
    """It completed without a copy, and the guest goes on there and only there, in the same memory."""
    assert (report.error, report.status, there.status) == (None, "completed", "completed")
    assert inodes(source) == inodes(destination)
    for side in (report, there):
        assert side.transport == "unix"
        assert side.ram.in_place_blocks == [part.block.name for part in source.memory()]
        assert side.ram.in_place_bytes == side.ram.total_bytes == sum(p.block.size_bytes for p in source.memory())
        assert (side.ram.sent_pages, side.ram.zero_pages, side.ram.wire_bytes) == (0, 0, 0)
        assert side.verified is None
    assert report.tracker == "none"
    assert source.stats().paused
    before = destination.stats().counter
    until(lambda: destination.stats().counter > before + 3, "the destination's next ticks")
    destination.pause(Discard())
    destination.check()


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("verify", [False, True, "before"])
def test_a_writing_guest_moves_with_its_memory_in_place(blocks: int, verify: bool | str) -> None:
    with guests(f"memory=64MiB,rate=80MiB/s,blocks={blocks}") as (source, destination):
        report, there = migrate(source, destination, transport="unix", verify=verify)
        stayed(source, destination, report, there)
        assert len(report.per_worker) == report.workers == there.workers == 1


def test_the_memory_outlasts_the_source() -> None:
    with HeldGuest("memory=32MiB", incoming=True) as destination:
        with HeldGuest("memory=32MiB,rate=40MiB/s") as source:
            report, _ = migrate(source, destination, transport="unix")
            assert report.error is None
        before = destination.stats().counter
        until(lambda: destination.stats().counter > before + 3, "the destination's next ticks")
        destination.pause(Discard())
        destination.check()


def test_a_guest_that_was_moved_in_place_moves_again() -> None:
    with HeldGuest("memory=32MiB,rate=40MiB/s") as first, HeldGuest("memory=32MiB", incoming=True) as second:
        assert migrate(first, second, transport="unix")[0].error is None
        first.close()
        with HeldGuest("memory=32MiB", incoming=True) as third:
            stayed(second, third, *migrate(second, third, transport="unix"))


# -- failures -------------------------------------------------------------------------------------------


def kill_destination(migration: Migration) -> None:
    assert migration.destination is not None
    kill(migration.destination.pid)


def kill_send_worker(migration: Migration) -> None:
    kill(migration.send_workers()[0])


def cancel_sender(migration: Migration) -> None:
    assert migration.sender is not None
    migration.sender.cancel()


@pytest.mark.parametrize("break_it", [kill_destination, kill_send_worker, cancel_sender])
@pytest.mark.parametrize("held", ["pause", "save_state", "finish_load"])
def test_a_failure_before_the_hand_over_leaves_the_source_its_memory(
    break_it: Callable[[Migration], None], held: str
) -> None:
    holds = {"hold_destination": [held]} if held == "finish_load" else {"hold_source": [held]}
    with guests(**holds) as (source, destination):
        with listen_uri("unix") as uri:
            config = SendConfig(workers=2)
            with Migration(source, destination, config, receive=ReceiveConfig(listen=uri)) as migration:
                gates = (destination if held == "finish_load" else source).gates
                gates[held].wait()
                assert inodes(source) == inodes(destination)
                if held == "finish_load":
                    before = content(source)
                break_it(migration)
                until(lambda: migration.status in ("failed", "cancelled") or migration._sent, "the failure")
                for gate in gates.values():
                    gate.open()
                assert migration.sent().error is not None
                assert migration.received().error is not None
                if held == "finish_load":
                    assert content(destination) is not None
                    assert before is not None
        runs_on(source)
        never_ran(destination)


def test_a_sender_that_goes_before_it_is_in_leaves_the_receiver_its_own_memory() -> None:
    """The next source finds a destination as if nobody had come before."""
    with guests() as (source, destination), listen_uri("unix") as uri:
        own = inodes(destination)
        with Migration(None, destination, receive=ReceiveConfig(listen=uri)) as migration:
            rude = UnixTransport("rude", max_message_bytes=MIB)
            rude.connect(parse_uri(uri), timeout_ns=PATIENCE_NS)
            control = ControlChannel(rude)
            rude.send_descriptors([part.fd for part in source.memory()])
            control.write(wish_of(source))
            accept = control.wait("the answer", PATIENCE_NS)
            assert isinstance(accept, Accept)
            assert accept.in_place == (0,)
            assert inodes(destination) == inodes(source)
            control.close()
            until(
                lambda: migration.received_progress and "did not get in" in migration.received_progress[-1].message, ""
            )
            assert inodes(destination) not in (own, inodes(source))
            second = Migration(source, None, SendConfig(workers=2), uri=uri)
            with second:
                assert second.sent().error is None
            assert migration.received().error is None
        assert inodes(source) == inodes(destination)


def wish_of(source: HeldGuest) -> Configure:
    """The first message of a sender."""
    from contextlib import ExitStack

    from parmig.engine.guest_thread import GuestThread
    from parmig.engine.source.introduction import Introduction

    thread = GuestThread()
    try:
        introduction = Introduction(parse_uri("unix:///x"), SendConfig(workers=1), ExitStack(), lambda: None)
        return introduction.make_wish(source, thread, source.info(), list(source.memory()))
    finally:
        thread.close()


def test_files_of_the_source_are_closed_when_it_was_refused() -> None:
    me = psutil.Process()
    with guests(destination_options="memory=64MiB") as (source, destination), listen_uri("unix") as uri:
        with Migration(None, destination, receive=ReceiveConfig(listen=uri)):
            with Migration(source, None, SendConfig(), uri=uri) as first:
                assert first.sent().error is not None
            before = me.num_fds()
            for _ in range(3):
                with Migration(source, None, SendConfig(), uri=uri) as again:
                    assert "memory size" in again.sent().error.message  # type: ignore[union-attr]
            assert me.num_fds() <= before
        runs_on(source)


# -- memory that is copied --------------------------------------------------------------------------------


def test_memory_of_the_same_file_at_another_place_is_refused(tmp_path: Path) -> None:
    """Both files are one: it would be copied onto itself, so the source is refused."""

    class Forgetful(HeldGuest):
        def lasting_blocks(self) -> list[str]:
            return []

    with (
        HeldGuest("memory=32MiB,rate=40MiB/s", directory=tmp_path) as source,
        Forgetful("memory=32MiB", incoming=True, directory=tmp_path) as destination,
        listen_uri("unix") as uri,
    ):
        with Migration(source, destination, SendConfig(), receive=ReceiveConfig(listen=uri)) as migration:
            error = migration.sent().error
        assert error is not None
        assert error.type == "PeerRefusedError"
        assert "the same file" in error.message
        runs_on(source)


def test_monitors_that_were_started_on_the_same_file_share_it(tmp_path: Path) -> None:
    with (
        HeldGuest("memory=32MiB,rate=40MiB/s", directory=tmp_path) as source,
        HeldGuest("memory=32MiB", incoming=True, directory=tmp_path) as destination,
    ):
        pid = destination.pid
        stayed(source, destination, *migrate(source, destination, transport="unix"))
        assert destination.pid == pid


@pytest.mark.parametrize("verify", [False, True, "before"])
def test_a_guest_whose_monitor_cannot_take_memory_is_copied(verify: bool | str) -> None:
    with guests("memory=64MiB,rate=80MiB/s,blocks=2") as (source, destination):
        destination.adopts_memory = False
        report, there = migrate(source, destination, transport="unix", verify=verify)
        assert (report.error, there.error) == (None, None)
        assert report.verified is (True if verify else None)
        assert (report.ram.in_place_bytes, there.ram.in_place_bytes) == (0, 0)
        assert report.ram.direct
        assert report.ram.sent_pages == there.ram.sent_pages >= 32 * MIB // PAGE_BYTES
        assert report.ram.wire_bytes == there.ram.wire_bytes == report.ram.sent_pages * PAGE_BYTES
        assert set(inodes(source)).isdisjoint(inodes(destination))
        destination.pause(Discard())
        destination.check()


def test_pages_that_are_compressed_go_through_the_socket() -> None:
    with guests("memory=64MiB,rate=80MiB/s,fill=text") as (source, destination):
        destination.adopts_memory = False
        report, there = migrate(source, destination, transport="unix", compress="lz4")
        assert (report.error, there.error, report.verified) == (None, None, True)
        assert not report.ram.direct
        assert report.ram.wire_bytes < 32 * MIB


@pytest.mark.parametrize("adopts", [False, True])
def test_nothing_but_the_guests_keeps_the_source_memory_meanwhile(adopts: bool) -> None:
    """Else it would stay allocated until the receiver ends, as long as its guest runs."""
    with guests(hold_destination=["finish_load"]) as (source, destination), listen_uri("unix") as uri:
        destination.adopts_memory = adopts
        with Migration(source, destination, SendConfig(workers=1), receive=ReceiveConfig(listen=uri)) as migration:
            destination.gates["finish_load"].wait()
            paths = [path for path in Path("/proc/self/fd").iterdir() if path.exists()]
            held = [path for path in paths if (path.stat().st_dev, path.stat().st_ino) in inodes(source)]
            assert len(held) == (2 if adopts else 1)
            destination.open_gates()
            assert migration.sent().error is None


def test_the_commands_move_a_guest_in_place() -> None:
    with (
        listen_uri("unix") as uri,
        Command("receive", "--listen", uri, "--guest", "synthetic:memory=64MiB", "--json") as there,
        Command("send", there.uri(), "--guest", "synthetic:memory=64MiB,rate=40MiB/s", "--json") as here,
    ):
        code, report = here.end()
        assert (code, report["status"], report["transport"]) == (0, "completed", "unix"), here.errors
        assert report["ram"]["in_place_blocks"] == ["ram0"]
        code, report = there.end()
        assert (code, report["status"]) == (0, "completed"), there.errors
        assert "found its memory right" in there.errors
