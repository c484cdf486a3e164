# SPDX-License-Identifier: Apache-2.0
"""Network labs for tests, and why there may be none."""

from __future__ import annotations

import importlib.util
import os

import pytest


def why_no_lab() -> str:
    """Why this process cannot open a network lab; empty: it can."""
    if os.geteuid():
        return "network namespaces need root"
    if importlib.util.find_spec("pyroute2") is None:
        return "pyroute2 is not installed; install the extra test"
    from parmig.experiments.netlab import Line, open_lab

    try:
        with open_lab([Line(1 << 20)]):
            return ""
    except Exception as error:  # whatever this kernel lacks
        return f"no network lab here: {error}"


NO_LAB = why_no_lab()

needs_lab = pytest.mark.skipif(bool(NO_LAB), reason=NO_LAB)
