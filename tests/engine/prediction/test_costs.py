# SPDX-License-Identifier: Apache-2.0
"""Costs as a file."""

from __future__ import annotations

import re

import msgspec
import pytest

from parmig.engine.prediction.costs import CodecCosts, Costs, read_costs
from parmig.errors import UsageError


def test_written_costs_are_read_back() -> None:
    costs = Costs(setup_s=0.25, codecs={"lz4": CodecCosts(0.5, 0.5, 2.0, 0.5)})

    again = read_costs(costs.encode(), "costs.toml")

    assert again.setup_s == 0.25
    assert again.codec("lz4") == CodecCosts(0.5, 0.5, 2.0, 0.5)


def test_what_a_file_leaves_out_has_its_default() -> None:
    again = read_costs(b"pause_s = 1\n[codecs.zstd]\nratio = 0.2\n", "costs.toml")

    assert again == msgspec.structs.replace(
        Costs(), pause_s=1.0, codecs={**Costs().codecs, "zstd": CodecCosts(ratio=0.2)}
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"pause_s = 'long'\n", "pause_s"),
        (b"pause_s = -1.0\n", "pause_s is -1.0"),
        (b"pause_s = nan\n", "pause_s is nan"),
        (b"[codecs.lz4]\nratio = inf\n", "codecs.lz4.ratio is inf"),
        (b"pauses = 1\n", "pauses"),
        (b"pause_s =", "costs.toml"),
        (b"\xff", "costs.toml"),
    ],
)
def test_a_wrong_file_is_refused_by_its_key(text: bytes, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        read_costs(text, "costs.toml")


def test_an_unknown_codec_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"'brotli'.*lz4"):
        Costs().codec("brotli")
