# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import msgspec
import pytest

from parmig.config import (
    MAX_WORKERS,
    ReceiveConfig,
    SendConfig,
    default_workers,
)
from parmig.engine.demo.demo_config import DemoConfig
from parmig.errors import UsageError
from parmig.snapshot.snapshot_config import RestoreConfig, SaveConfig
from parmig.units import GIB, KIB, MIB
from parmig.values import AUTO_PATH, Path, parse_path


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("10.0.0.2", Path(remote="10.0.0.2")),
        ("10.0.0.1-10.0.0.2", Path(local="10.0.0.1", remote="10.0.0.2")),
        ("[fd00::1]-[fd00::2]", Path(local="[fd00::1]", remote="[fd00::2]")),
        ("left-right", Path(local="left", remote="right")),
        ("10.0.0.2@1GiB/s", Path(remote="10.0.0.2", rate_bytes_per_s=GIB)),
        ("[fd00::1]-[fd00::2]@5MiB/s", Path(local="[fd00::1]", remote="[fd00::2]", rate_bytes_per_s=5 * MIB)),
        ("auto", AUTO_PATH),
    ],
)
def test_a_path_is_read_and_printed_alike(text: str, path: Path) -> None:
    assert parse_path(text) == path
    assert str(path) == text


@pytest.mark.parametrize(
    "text", ["", "-", "a-", "-b", "a-b-c", "a b", "fd00::1-[fd00::2", "[x]-b", "auto@1MiB/s", "@1MiB/s"]
)
def test_text_that_is_no_path_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="LOCAL-REMOTE"):
        parse_path(text)


def test_a_rate_of_a_path_may_be_in_bits() -> None:
    assert parse_path("10.0.0.2@1Gbit/s").rate_bytes_per_s == 125_000_000
    with pytest.raises(UsageError, match="'x' is not a rate"):
        parse_path("10.0.0.2@x")


def test_each_path_needs_a_worker() -> None:
    paths = tuple(map(parse_path, ("10.0.0.2", "10.1.0.2", "10.2.0.2")))
    SendConfig(paths=paths, workers=3).check()
    with pytest.raises(UsageError, match=r"3 paths need a worker each, but --workers is 2; give --workers 3 or more"):
        SendConfig(paths=paths, workers=2).check()


def test_auto_is_alone() -> None:
    SendConfig(paths=(AUTO_PATH,), workers=1).check()
    with pytest.raises(UsageError, match="leave out the others"):
        SendConfig(paths=(AUTO_PATH, parse_path("10.0.0.2")), workers=4).check()


def test_the_defaults_make_sense() -> None:
    SendConfig().check()
    assert 1 <= default_workers() <= 4
    assert ReceiveConfig().listen.startswith("zmq+tcp://127.0.0.1:")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("workers", 0),
        ("workers", MAX_WORKERS + 1),
        ("batch_bytes", 4 * KIB),
        ("batch_bytes", 5 * MIB),
        ("batch_bytes", 1 * MIB + 1),
        ("max_bandwidth_bytes_per_s", -1),
        ("downtime_limit_ns", 0),
        ("max_downtime_ns", -1),
        ("timeout_ns", -1),
        ("throttle_initial_percent", 0),
        ("throttle_increment_percent", 0),
        ("throttle_max_percent", 100),
        ("throttle_max_percent", 19),
        ("transport", "pigeon"),
        ("compress", "rar"),
        ("tracker", "guess"),
        ("switchover_timeout_ns", 0),
        ("switchover_timeout_ns", 300_000_000),
        ("max_downtime_ns", 30_000_000_000),
        ("connect_timeout_ns", -1),
        ("workers", "two"),
        ("paths", ("10.0.0.1",)),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(field: str, value: Any) -> None:
    with pytest.raises(UsageError):
        msgspec.structs.replace(SendConfig(), **{field: value}).check()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (SendConfig(workers=65), "--workers: 65 is not allowed; expected a number from 1 to 64"),
        (SendConfig(downtime_limit_ns=0), "--downtime-limit: 0 is not allowed; expected a duration of more than 0"),
        (SaveConfig(format="tar"), "--format: 'tar' is unknown; expected one of mapped-ram, stream"),
        (RestoreConfig(workers=0), "--workers: 0 is not allowed; expected a number from 1 to 64"),
        (ReceiveConfig(wait_ns=-1), "--wait: -0.000001ms is not allowed; expected a duration of at least 0"),
        (DemoConfig(vcpus=65), "--vcpus: 65 is not allowed; expected a number from 1 to 64"),
        (
            SendConfig(peers=("a.test",)),
            "--peer names certificates, and without --keys nobody shows one; give --keys DIR as well",
        ),
        (
            ReceiveConfig(keys="/keys", insecure=True),
            "--insecure is for listening without keys; leave out --insecure, or --keys",
        ),
        (
            SaveConfig(max_downtime_ns=60_000_000_000),
            "--switchover-timeout is 30s, but --downtime-limit and --max-downtime allow a pause of 60s; "
            "give a longer --switchover-timeout",
        ),
        (
            SendConfig(throttle_initial_percent=50, throttle_max_percent=40),
            "--throttle-initial is 50, more than --throttle-max (40); the first step cannot exceed the maximum",
        ),
    ],
)
def test_a_refusal_says_what_was_found_and_what_was_expected(config: Any, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        config.check()
    assert str(caught.value) == words


def test_limits_themselves_are_allowed() -> None:
    SendConfig(workers=64, batch_bytes=256 * KIB, throttle_initial_percent=99, throttle_max_percent=99).check()
    SendConfig(workers=1, batch_bytes=4 * MIB, switchover_timeout_ns=300_000_001).check()


def test_a_configuration_survives_a_process_border() -> None:
    config = SendConfig(paths=(parse_path("10.0.0.1-10.0.0.2"),), workers=3)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(config), type=SendConfig) == config
