# SPDX-License-Identifier: Apache-2.0
"""Running KVM guests move, back and forth, under load; what fails or is cancelled leaves them running where they were.

``tools/soak_kvm.py`` does the same as often as asked for.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from parmig.cli.app import app
from parmig.config import SendConfig
from parmig.errors import NotConvergingError, PeerRefusedError
from parmig.guests.kvm.kvm_guest import open_kvm
from parmig.units import MIB, NS_PER_MS
from tests.kvm.machines import needs_kvm
from tests.support import wait_until
from tools.bench_lab import migrate_guests
from tools.soak_kvm import Discard, soak, warm_up

pytestmark = needs_kvm

SMALL = "memory=16MiB,vcpus=2,rate=20MiB/s"


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    """The fork server is there before anything is counted."""
    warm_up(SMALL, SendConfig(workers=1))


@pytest.mark.parametrize(
    ("options", "tracker"),
    [
        (f"{SMALL},program=increment", "auto"),
        (f"{SMALL},program=random", "bitmap"),
        (f"{SMALL},program=random,irqchip=off", "pagemap"),
    ],
)
def test_a_guest_under_load_moves_back_and_forth(options: str, tracker: str) -> None:
    found = soak(3, options, SendConfig(workers=2, tracker=tracker), cancel_every=3)
    assert found["migrations"] == 3
    assert found["pages_sent_after_round_1"] > 0
    assert found["lines"] >= 4
    assert [text.partition(":")[0] for text in found["dirty_log"]] == ["bitmap" if tracker == "auto" else tracker]


def test_memory_on_both_sides_of_the_hole_and_a_disk_move(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(MIB))
    options = f"memory=4GiB,vcpus=2,touched=8MiB,fill=zero,rate=20MiB/s,disk={disk}"
    assert soak(2, options, SendConfig(workers=2))["migrations"] == 2


@pytest.mark.parametrize("own_file", [False, True])
@pytest.mark.parametrize("irqchip", ["on", "off"])
def test_a_guest_moves_to_a_new_monitor_with_its_memory_in_place(tmp_path: Path, irqchip: str, own_file: bool) -> None:
    """The new monitor takes the memory of the old one, or was started on the same file."""
    options = f"{SMALL},program=random,irqchip={irqchip}" + (f",file={tmp_path}/ram" if own_file else "")
    source, destination = open_kvm(options, incoming=False), open_kvm(options, incoming=True)
    try:
        wait_until(lambda: source.stats().beats > 2, "the guest to run")
        for report in migrate_guests(source, destination, SendConfig(transport="unix", verify=True)):
            assert (report.ram.in_place_blocks, report.ram.sent_pages, report.transport) == (["ram"], 0, "unix")
        source.close()
        beats = destination.stats().beats
        wait_until(lambda: destination.stats().beats > beats + 2, "the guest to go on")
        destination.pause(Discard())
        destination.check()
    finally:
        source.close()
        destination.close()


def test_a_guest_with_a_file_of_its_own_at_the_destination_is_copied(tmp_path: Path) -> None:
    source = open_kvm(SMALL, incoming=False)
    destination = open_kvm(f"{SMALL},file={tmp_path}/ram", incoming=True)
    try:
        report, _ = migrate_guests(source, destination, SendConfig(transport="unix", verify=True))
        assert (report.ram.in_place_bytes, report.verified) == (0, True)
        destination.pause(Discard())
        destination.check()
    finally:
        source.close()
        destination.close()


def test_the_serial_file_has_every_line_once(tmp_path: Path) -> None:
    path = tmp_path / "serial"
    soak(3, f"{SMALL},serial={path}", SendConfig(workers=1))
    numbers = [int(line.split()[1], 16) for line in path.read_text().splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_destination_of_another_shape_is_refused_before_anything_moves() -> None:
    source, destination = open_kvm(SMALL, incoming=False), open_kvm("memory=16MiB,vcpus=1", incoming=True)
    try:
        with pytest.raises(PeerRefusedError, match=r"kvm-1,vcpus=2,irqchip=on.*kvm-1,vcpus=1,irqchip=on"):
            migrate_guests(source, destination, SendConfig(workers=1))
        assert source.is_running()
    finally:
        source.close()
        destination.close()


def test_a_guest_that_outruns_the_link_converges_slowed_down_and_fails_cleanly_without() -> None:
    options = "memory=16MiB,vcpus=2,program=random,rate=max,fill=zero"
    slow = {"workers": 1, "max_bandwidth_bytes_per_s": 60 * MIB, "downtime_limit_ns": 60 * NS_PER_MS}
    steps = {"auto_converge": True, "throttle_initial_percent": 60, "throttle_increment_percent": 20}
    source, destination = open_kvm(options, incoming=False), open_kvm(options, incoming=True)
    try:
        with pytest.raises(NotConvergingError):
            migrate_guests(source, destination, SendConfig(**slow))
        assert source.is_running()
        beats = source.stats().beats
        wait_until(lambda: source.stats().beats > beats, "the guest to go on")
        source.pause(Discard())
        source.check()
        source.resume()
    finally:
        destination.close()
    destination = open_kvm(options, incoming=True)
    try:
        report, _ = migrate_guests(source, destination, SendConfig(**slow, **steps))
        assert report.max_throttle_percent > 0
        destination.pause(Discard())
        destination.check()
    finally:
        source.close()
        destination.close()


def test_the_demonstration_shows_a_kvm_guest() -> None:
    command = ["demo", "--guest", "kvm", "--memory", "32MiB", "--dirty-rate", "20MiB/s", "--workers", "1"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert re.search(r"guest +kvm, 32 MiB of memory", done.output)
    assert "verified     yes" in done.output
    refused = CliRunner().invoke(app, [*command, "--pattern", "hot"])
    assert refused.exit_code == 2
    assert "random or sequential" in refused.output
