# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import msgspec
import pytest

from parmig.config import MAX_WORKERS, Path, ReceiveConfig, SendConfig, default_workers, parse_path
from parmig.errors import UsageError
from parmig.units import KIB, MIB


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("10.0.0.2", Path(remote="10.0.0.2")),
        ("10.0.0.1-10.0.0.2", Path(local="10.0.0.1", remote="10.0.0.2")),
        ("[fd00::1]-[fd00::2]", Path(local="[fd00::1]", remote="[fd00::2]")),
        ("left-right", Path(local="left", remote="right")),
    ],
)
def test_a_path_is_read_and_printed_alike(text: str, path: Path) -> None:
    assert parse_path(text) == path
    assert str(path) == text


@pytest.mark.parametrize("text", ["", "-", "a-", "-b", "a-b-c", "a b", "fd00::1-[fd00::2", "[x]-b"])
def test_text_that_is_no_path_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="LOCAL-REMOTE"):
        parse_path(text)


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
    ],
)
def test_a_value_that_makes_no_sense_is_refused(field: str, value: Any) -> None:
    with pytest.raises(UsageError):
        msgspec.structs.replace(SendConfig(), **{field: value}).check()


def test_a_configuration_survives_a_process_border() -> None:
    config = SendConfig(paths=(parse_path("10.0.0.1-10.0.0.2"),), workers=3)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(config), type=SendConfig) == config
