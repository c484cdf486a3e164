# SPDX-License-Identifier: Apache-2.0
"""A running QEMU is watched, with either kind of its memory, and nothing stays behind in it."""

from __future__ import annotations

import numpy as np
import pytest

from parmig.engine.predicting.predict_config import PredictConfig
from parmig.engine.predicting.predictor import Predictor
from parmig.engine.tracing.write_watch import WriteWatch
from parmig.guests.qemu.options import open_qemu
from parmig.units import MIB, NS_PER_MS, NS_PER_S
from tests.qemu.machines import QemuMachine

pytestmark = pytest.mark.qemu


@pytest.mark.parametrize("state", ["devices", "migrate"])
@pytest.mark.parametrize("tracker", ["auto", "digest"])
def test_the_writes_of_a_linux_are_found_and_nothing_stays(linux_guest: QemuMachine, state: str, tracker: str) -> None:
    linux_guest.disconnect()
    with open_qemu(f"{linux_guest.socket},state={state}", incoming=False) as guest:
        with WriteWatch(guest, tracker) as watch:
            ticks = len(linux_guest.ticks())
            scans = list(watch.intervals(100 * NS_PER_MS, 5 if tracker == "auto" else 2))
            assert watch.source.kind == "qemu"
        written = np.concatenate([pages for pages, _ in scans])
        assert 0 < len(written) < watch.memory_pages
        assert written.max() < watch.memory_pages
    linux_guest.connect()
    assert linux_guest.tracked_mappings() == 0
    linux_guest.wait_for_ticks()
    assert len(linux_guest.ticks()) > ticks


def test_the_migration_of_a_linux_is_predicted_and_nothing_stays(linux_guest: QemuMachine) -> None:
    linux_guest.disconnect()
    with open_qemu(f"{linux_guest.socket}", incoming=False) as guest:
        config = PredictConfig(rate_bytes_per_s=100 * MIB, observe_ns=NS_PER_S)
        report = Predictor(guest, config).start()
    assert 0 < report.data_bytes < report.memory_bytes
    assert 0 < report.working_set[0].written_bytes < report.memory_bytes
    assert report.predictions[0].prediction.converges
    linux_guest.connect()
    assert linux_guest.tracked_mappings() == 0
