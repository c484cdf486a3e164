# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from parmig.inspection import inspection_report as report

PAGE = (Path(__file__).parents[2] / "docs/report.md").read_text()
SECTIONS = {
    report.Inspection: "## parmig inspect",
    report.InspectionError: "### inspect: error",
    report.SectionInspection: "### inspect: sections",
    report.BlockInspection: "### inspect: blocks",
    report.TrailerInspection: "### inspect: trailer",
    report.DeviceInspection: "### inspect: devices",
}


@pytest.mark.parametrize("struct", SECTIONS)
def test_every_field_is_documented_where_it_belongs(struct: type[msgspec.Struct]) -> None:
    section = re.split(r"^#+ ", PAGE.split(f"{SECTIONS[struct]}\n")[1], maxsplit=1, flags=re.M)[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.M) == list(struct.__struct_fields__)
