# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from parmig.engine.reporting.mismatch import MAX_LISTED, Mismatch, joined


def test_a_mismatch_names_both_sides_and_what_to_do() -> None:
    assert str(Mismatch("disks", "a", "b", "do c")) == "disks: a at the source, b at the destination (do c)"
    assert str(Mismatch("disks", "a", "", "do c")) == "disks: a at the source, none at the destination (do c)"
    assert str(Mismatch("--auto-converge", "", "", "leave it out")) == "--auto-converge: leave it out"


def test_very_many_mismatches_are_counted_instead_of_listed() -> None:
    mismatches = [Mismatch(f"block {number}", "a", "", "do c") for number in range(1000)]
    words = joined(mismatches)
    assert words.endswith(f"; and {1000 - MAX_LISTED} more")
    assert words.count(";") == MAX_LISTED
    assert joined(mismatches[:2]) == "; ".join(map(str, mismatches[:2]))
    assert joined([]) == ""
