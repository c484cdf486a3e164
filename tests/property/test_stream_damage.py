# SPDX-License-Identifier: Apache-2.0
"""Damaged streams: a reader returns, or raises an error of the stream; tools/fuzz_stream.py does this for longer."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parmig.errors import StreamError
from tools import fuzz_stream
from tools.fuzz_stream import TARGETS, check, damaged, seeds


@pytest.mark.parametrize("target", TARGETS)
def test_a_seed_is_valid(target: str) -> None:
    for one in seeds(target):
        TARGETS[target](one)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=150)
@given(seed=st.integers(0, 1 << 32))
def test_only_documented_errors_escape(target: str, seed: int) -> None:
    chance = random.Random(seed)
    for one in seeds(target):
        check(target, damaged(one, chance))


@pytest.mark.parametrize("target", TARGETS)
@given(content=st.binary(max_size=200))
def test_noise_is_refused_or_read(target: str, content: bytes) -> None:
    check(target, content)


def test_what_is_not_documented_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(content: bytes) -> None:
        raise (StreamError("documented") if content else IndexError)

    monkeypatch.setitem(fuzz_stream.TARGETS, "xbzrle", broken)
    check("xbzrle", b"x")
    with pytest.raises(IndexError):
        check("xbzrle", b"")
