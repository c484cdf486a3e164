# SPDX-License-Identifier: Apache-2.0
"""The examples of docs/state.md run."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "state.md"


def test_the_examples_of_the_page_run(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("docs_state_page")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    examples = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.S | re.M)
    assert len(examples) == 4
    for example in examples:
        exec(example, vars(module))
    clock = module.Clock()
    module.migration_state_pop(module.state_of(clock), bytes(8) + b"\0\0\0\2", version=2)
    assert clock.speed_hz == 2000
