# SPDX-License-Identifier: Apache-2.0
"""Damaged input to every reader: it returns, or raises a documented error; tools/fuzz.py does this for longer."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parmig.errors import StreamError
from tools import fuzz_messages, fuzzing
from tools.fuzz import TARGETS
from tools.fuzzing import FindingError, Target, check, damaged, fuzz_plain


@pytest.fixture(scope="module", autouse=True)
def _lasting_memory() -> Iterator[None]:
    """The memory that batches are placed in lasts for all inputs."""
    for valid in TARGETS["batches"].seeds():
        fuzz_messages.batches(valid)
    yield
    fuzz_messages.close()


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=40)
@given(seed=st.integers(0, 1 << 32))
def test_only_documented_errors_escape(target: str, seed: int) -> None:
    chance = random.Random(seed)
    for valid in TARGETS[target].seeds():
        check(TARGETS[target], damaged(valid, chance))


@pytest.mark.parametrize("target", TARGETS)
def test_valid_input_is_taken_and_damage_takes_little_memory(target: str, tmp_path: Path) -> None:
    outcome = fuzz_plain(target, TARGETS[target], 1, tmp_path, inputs=200)
    assert outcome.inputs == 200
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=50)
@given(content=st.binary(max_size=200))
def test_noise_is_refused_or_read(target: str, content: bytes) -> None:
    check(TARGETS[target], content)


def test_what_is_not_documented_is_a_finding(tmp_path: Path) -> None:
    def broken(content: bytes) -> None:
        raise (IndexError if content == b"bad" else StreamError("documented"))

    def fine_at_first(content: bytes) -> None:
        if content != b"good":
            broken(b"bad")

    assert check(Target(broken, list, (StreamError,)), b"x")
    with pytest.raises(IndexError):
        fuzz_plain("broken", Target(fine_at_first, lambda: [b"good"]), 1, tmp_path, inputs=100)
    assert [path.name[:7] for path in tmp_path.iterdir()] == ["broken-"]


def test_growth_and_slowness_are_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bytearray] = []
    greedy = Target(lambda content: kept.append(bytearray(b"x" * (16 << 20))), lambda: [b"good"])
    with pytest.raises(FindingError, match="memory grew by"):
        fuzz_plain("greedy", greedy, 1, tmp_path, inputs=100)
    monkeypatch.setattr(fuzzing, "TIME_LIMIT_S", 0.0)
    with pytest.raises(FindingError, match="one input took"):
        fuzz_plain("slow", Target(lambda content: None, lambda: [b"good"]), 1, tmp_path, inputs=1)
