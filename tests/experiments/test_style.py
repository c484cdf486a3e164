# SPDX-License-Identifier: Apache-2.0
"""How pictures look."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib")


def test_no_panel_cuts_what_another_shows() -> None:
    from parmig.experiments.plots.style import panel_figure, start_at_zero

    with panel_figure(3, "Panels with one axis") as (_, axes):
        for axis, value in zip(axes, (1.0, 2.0, 5.0), strict=True):
            axis.plot([1, 2], [value, value / 2])
        start_at_zero(axes)
        assert {axis.get_ylim()[0] for axis in axes} == {0}
        assert all(5 < axis.get_ylim()[1] < 6 for axis in axes)
