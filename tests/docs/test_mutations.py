# SPDX-License-Identifier: Apache-2.0
"""Mutations by hand still fit the code: each has its text exactly once, and its tests are there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.mutations import Mutation, applies, mutations

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("mutation", mutations(), ids=lambda mutation: mutation.name)
def test_a_mutation_applies_and_has_its_tests(mutation: Mutation) -> None:
    assert applies(mutation, ROOT), f"its text is not exactly once in {mutation.file}; update tools/mutations.toml"
    for test in mutation.tests:
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text() if name else (ROOT / file).exists(), f"{test} is gone"


def test_no_two_mutations_have_the_same_name() -> None:
    names = [mutation.name for mutation in mutations()]
    assert len(set(names)) == len(names)
