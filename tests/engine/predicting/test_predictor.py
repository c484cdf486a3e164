# SPDX-License-Identifier: Apache-2.0
"""A guest is observed and left as it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from parmig.engine.predicting.costs_file import read_costs_file
from parmig.engine.predicting.link_rate import rate_to
from parmig.engine.predicting.predict_config import PredictConfig
from parmig.engine.predicting.predictor import Predictor
from parmig.errors import CancelledError, HostRefusedError, ParmigError, PeerRefusedError, UsageError
from parmig.guests.registry import open_guest
from parmig.transport.transport import parse_uri
from parmig.units import MIB, NS_PER_S

GUEST = "synthetic:memory=32MiB,rate=8MiB/s,pattern=sequential,fill=text"


def test_a_guest_is_observed_twice_and_runs_on() -> None:
    config = PredictConfig(
        rate_bytes_per_s=20 * MIB, observe_ns=NS_PER_S, workers="1,2", compress="none,delta", downtime_limit="100ms,1s"
    )
    with open_guest(GUEST, incoming=False) as guest:
        descriptors = os.listdir("/proc/self/fd")
        for _ in range(2):
            report = Predictor(guest, config).start()
            assert os.listdir("/proc/self/fd") == descriptors
        assert guest.is_running()

    assert report.memory_bytes == 32 * MIB
    assert report.zero_bytes < MIB
    assert 0.9 < report.observed_s < 60
    assert 0 < report.working_set[-1].written_bytes <= 32 * MIB
    assert report.codecs["zstd"].ratio < 0.5
    assert report.codecs["delta"].decode_s_per_gib == read_costs_file("").codec("delta").decode_s_per_gib
    assert [(one.workers, one.compress, one.downtime_limit_ms) for one in report.predictions[:3]] == [
        (1, "none", 100),
        (1, "none", 1000),
        (1, "delta", 100),
    ]
    assert len(report.predictions) == 8
    assert report.predictions[0].prediction.total_s.value > 1.6


def test_a_cancelled_observation_leaves_nothing() -> None:
    with open_guest(GUEST, incoming=False) as guest:
        descriptors = os.listdir("/proc/self/fd")
        predictor = Predictor(guest, PredictConfig(rate_bytes_per_s=MIB), lambda _: predictor.cancel())
        with pytest.raises(CancelledError):
            predictor.start()
        assert os.listdir("/proc/self/fd") == descriptors
        assert guest.is_running()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (PredictConfig(), "--rate RATE"),
        (PredictConfig(rate_bytes_per_s=1, paths="4", workers="1,2"), "each path needs a worker"),
        (PredictConfig(rate_bytes_per_s=1, workers="1,65"), "65 is not allowed"),
        (PredictConfig(rate_bytes_per_s=1, compress="none,brotli"), "'brotli' is no codec"),
        (PredictConfig(rate_bytes_per_s=1, downtime_limit="0"), "more than 0"),
        (PredictConfig(rate_bytes_per_s=1, observe_ns=1), "--observe"),
        (PredictConfig(rate_bytes_per_s=1, costs="/nowhere/costs.toml"), "/nowhere/costs.toml"),
    ],
)
def test_wrong_options_are_refused_before_the_guest_is_watched(config: PredictConfig, words: str) -> None:
    with open_guest("synthetic:memory=4MiB", incoming=False) as guest, pytest.raises(UsageError, match=words):
        Predictor(guest, config).start()


@pytest.mark.parametrize(
    ("uri", "error", "words"),
    [
        ("tcp://127.0.0.1:4600", HostRefusedError, "lo, which leads to 127.0.0.1, is no real device"),
        ("unix:///run/nobody.sock", HostRefusedError, "is on this host"),
        ("tcp://name.invalid:4600", PeerRefusedError, "no address"),
    ],
)
def test_a_rate_that_nobody_knows_is_asked_for(uri: str, error: type[ParmigError], words: str) -> None:
    with pytest.raises(error, match=f"{words}.*--rate"):
        rate_to(parse_uri(uri))


def test_costs_are_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "costs.toml").write_text("pause_s = 0.5\n")

    assert read_costs_file(str(tmp_path / "costs.toml")).pause_s == 0.5
