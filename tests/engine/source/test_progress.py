# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from parmig.engine.source.progress import rates_by_path


def test_the_rate_of_a_path_is_that_of_its_workers() -> None:
    assert rates_by_path(["a", "b", "a"], [1.0, 10.0, 100.0]) == {"a": 101.0, "b": 10.0}


def test_a_single_path_needs_no_line_of_its_own() -> None:
    assert rates_by_path(["a", "a"], [1.0, 2.0]) == {}
    assert rates_by_path([], [1.0, 2.0]) == {}
