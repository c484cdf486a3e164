# SPDX-License-Identifier: Apache-2.0
"""What docs/embedding.md shows runs, and names files that are there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.kvm.machines import needs_kvm

pytestmark = needs_kvm

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/embedding.md").read_text()


BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.S | re.M)
assert BLOCKS, "without any the test below would be skipped without a word"


@pytest.mark.parametrize("block", BLOCKS)
def test_its_programs_run(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("embedding")
    monkeypatch.setitem(sys.modules, "embedding", module)
    exec(compile(block, "docs/embedding.md", "exec"), vars(module))


def test_its_table_has_every_file_of_the_package() -> None:
    here = {path.name for path in (ROOT / "parmig/guests/kvm").glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"`kvm/(\w+\.py)`", TEXT)) == here
