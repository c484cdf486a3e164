# SPDX-License-Identifier: Apache-2.0
"""Whole migrations whose memories are compared: after the hand-over, before it, and with damage."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from parmig.config import SendConfig
from parmig.engine.reporting.report import Report
from parmig.units import MIB
from tests.integration.sides import LISTEN, Command, HeldGuest, Migration, guests, kill, migrate, until

QUICK = "memory=32MiB,rate=20MiB/s"
AFTER = SendConfig(workers=2, verify="after")

DAMAGE = """
import os
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # else its threads keep the command from forking its workers from itself
from parmig.ram.place import PagePlacer
place_run = PagePlacer.place_run
def place_and_damage(self, block, first_page, data):
    place_run(self, block, first_page, data)
    if first_page <= 5000 < first_page + len(data) // 4096:
        self._blocks[block].pages[5000, 17] ^= 1
PagePlacer.place_run = place_and_damage
"""
"""One bit of a page is wrong at the destination, between the arrival of its bytes and the digest of the memory."""


def test_the_comparison_after_the_hand_over_costs_no_pause() -> None:
    with guests(QUICK) as (source, destination):
        report, received = migrate(source, destination, verify="after")
        assert (report.error, report.verified, report.status) == (None, True, "completed")
        assert report.downtime_phases_ms.verify == 0
        assert report.downtime_without_verify_ms == report.downtime_ms
        assert report.verify_ms is not None
        assert report.digest == received.digest
        assert received.verified is True


def test_the_comparison_before_it_is_a_phase_of_the_pause() -> None:
    with guests(QUICK) as (source, destination):
        report, received = migrate(source, destination, verify="before")
        assert (report.error, report.verified, report.verify_ms) == (None, True, None)
        assert report.downtime_phases_ms.verify > 0
        assert received.verified is None


@pytest.mark.parametrize("transport", ["tcp", "zmq"])
def test_a_destination_whose_memory_was_not_empty_is_equal(transport: str) -> None:
    with guests("memory=32MiB,rate=20MiB/s,touched=50%") as (source, destination):
        (memory,) = destination.memory()
        os.pwrite(memory.fd, os.urandom(20 * MIB), memory.file_offset_bytes + 12 * MIB)
        report, _ = migrate(source, destination, transport=transport, verify="after")
        assert (report.error, report.verified) == (None, True)
        assert report.ram.zero_pages + report.ram.skipped_pages > 0


def test_a_page_that_was_placed_wrongly_is_named_and_the_guest_stays_at_the_destination() -> None:
    with Command("receive", "--listen", LISTEN, "--guest", "synthetic:memory=32MiB", "--json", prelude=DAMAGE) as there:
        send = ("send", there.uri(), "--guest", "synthetic:memory=32MiB,rate=0", "--workers", "2", "--json", "--verify")
        with Command(*send) as here:
            code, report = here.end()
        there.end()
    assert (code, report["status"], report["verified"], report["source_guest"]) == (6, "completed", False, "moved")
    assert report["error"]["type"] == "NotVerifiedError"
    assert "1 of 16 regions differ" in report["error"]["message"]
    assert f"byte {5000 * 4096:#x}" in report["error"]["message"]
    assert report["digest"]["source"] != report["digest"]["destination"]


@contextmanager
def held_after() -> Iterator[tuple[HeldGuest, HeldGuest, Migration]]:
    """A migration that is held right after its hand-over."""
    with guests(QUICK, hold_destination=["resume"]) as (here, there), Migration(here, there, AFTER) as migration:
        there.gates["resume"].wait()
        yield here, there, migration


def not_verified(report: Report, verified: bool | None) -> str:
    assert report.error is not None
    assert (report.status, report.verified, report.source_guest) == ("completed", verified, "moved")
    assert (report.error.type, report.exit_code) == ("NotVerifiedError", 6)
    return report.error.message


def test_frozen_memory_that_somebody_changed_is_named_by_all_of_its_pages() -> None:
    with held_after() as (source, destination, at):
        (memory,) = source.memory()
        for page in (3, 4, 7000):
            byte = os.pread(memory.fd, 1, page * 4096 + memory.file_offset_bytes)
            os.pwrite(memory.fd, bytes([byte[0] ^ 1]), page * 4096 + memory.file_offset_bytes)
        destination.open_gates()
        words = not_verified(at.sent(), False)
        for page in (3, 4, 7000):
            assert f"byte {page * 4096:#x}" in words
        received = at.received()
        assert (received.error, received.verified) == (None, False)
        assert destination.is_running()


@pytest.mark.parametrize("victim", ["send worker", "receive worker", "cancel"])
def test_a_comparison_that_cannot_end_is_an_error_of_its_own(victim: str) -> None:
    with held_after() as (_, destination, at):
        worker = (at.receive_workers() if victim == "receive worker" else at.send_workers())[1]
        os.kill(worker, signal.SIGSTOP)
        destination.open_gates()
        assert at.sender is not None
        until(lambda: at.sender is not None and at.sender._plan.step.name == "COMPARING", "the comparison")
        if victim == "cancel":
            at.sender.cancel()
            words = "cancelled"
        else:
            kill(worker)
            words = f"{victim} 1"
        assert words in not_verified(at.sent(), None)
        assert (at.received().error, at.received().status) == (None, "completed")
        assert destination.is_running()


def test_the_source_gets_no_digests_that_it_did_not_announce() -> None:
    """A destination of today's version keeps none for a source of the last release."""
    wish = SendConfig(workers=2)
    with guests(QUICK) as (source, destination), Migration(source, destination, wish) as at:
        assert at.sent().verified is None
        assert at.receiver is not None
        assert at.receiver._session is not None
        assert not at.receiver._session._listeners._keeps_digests
