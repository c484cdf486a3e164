# SPDX-License-Identifier: Apache-2.0
"""What a guest notes of its own speed."""

from __future__ import annotations

import numpy as np
import pytest

from parmig.guests.pulse import SAMPLES_MAX, Pulse, PulseLog, Pulsing
from parmig.guests.registry import open_guest
from parmig.ram.blocks import PAGE_BYTES
from parmig.units import NS_PER_MS, NS_PER_S
from tests.kvm.machines import needs_kvm
from tests.support import wait_until


def pulse(*samples: tuple[int, int]) -> Pulse:
    at_ns, pages = np.array(samples, dtype=np.int64).reshape(-1, 2).T
    return Pulse(at_ns, pages)


def test_a_speed_is_interpolated_between_samples() -> None:
    steady = pulse((0, 0), (NS_PER_S, 100), (2 * NS_PER_S, 300))
    assert steady.bytes_per_s(0, NS_PER_S) == 100 * PAGE_BYTES
    assert steady.bytes_per_s(NS_PER_S // 2, NS_PER_S * 3 // 2) == 150 * PAGE_BYTES
    assert steady.bytes_per_s(2 * NS_PER_S, 3 * NS_PER_S) == 0, "it stood still"


@pytest.mark.parametrize(("begin_ns", "end_ns"), [(5, 5), (0, 20)])
def test_a_time_of_which_too_little_is_known_has_no_speed(begin_ns: int, end_ns: int) -> None:
    assert pulse((5, 0), (10, 1)).bytes_per_s(begin_ns, end_ns) is None
    assert pulse().bytes_per_s(0, 10) is None


def test_the_longest_stall_has_no_sample_in_it() -> None:
    stalled = pulse((0, 0), (5, 0), (20, 0), (25, 0))
    assert stalled.longest_stall_ns(0, 25) == 15
    assert stalled.longest_stall_ns(10, 15) == 5
    assert stalled.longest_stall_ns(21, 60) == 35
    assert pulse().longest_stall_ns(0, 9) == 0


def test_only_the_last_samples_are_kept() -> None:
    log = PulseLog(7.0)
    for number in range(SAMPLES_MAX + 10):
        log.note(number, 2 * number)
    kept = log.since(0)
    assert (len(kept.at_ns), kept.at_ns[0], kept.pages[-1]) == (SAMPLES_MAX, 10, 2 * (SAMPLES_MAX + 9))
    assert log.since(SAMPLES_MAX).at_ns.tolist() == list(range(SAMPLES_MAX, SAMPLES_MAX + 10))
    assert (kept.asked_bytes_per_s, len(PulseLog().since(0).at_ns)) == (7.0, 0)


@pytest.mark.parametrize(
    "text",
    [
        "synthetic:memory=2MiB,rate=4MiB/s",
        pytest.param("kvm:memory=2MiB,rate=4MiB/s,vcpus=2", marks=needs_kvm),
        pytest.param("kvm:memory=2MiB,rate=4MiB/s,program=random", marks=needs_kvm),
    ],
)
def test_a_guest_counts_what_it_writes_and_stops_with_it(text: str) -> None:
    with open_guest(f"{text},head-start=50ms", incoming=False) as guest:
        assert isinstance(guest, Pulsing)
        wait_until(lambda: len(at_ns := guest.pulse().at_ns) > 1 and at_ns[-1] - at_ns[0] >= 20 * NS_PER_MS, "samples")
        started = guest.pulse()
        assert started.asked_bytes_per_s == 4 << 20
        wait_until(lambda: guest.pulse().pages[-1] > started.pages[-1] + 20, "more writes")
        stopped_ns = guest.pause(None)  # type: ignore[arg-type]  # nothing goes there
        paused = guest.pulse()
        assert len(guest.pulse(stopped_ns + 1).at_ns) <= 1
        assert (np.diff(paused.at_ns) >= 0).all()
        assert (np.diff(paused.pages) >= 0).all()
        guest.resume()
        wait_until(lambda: guest.pulse().pages[-1] > paused.pages[-1], "writes after the pause")
