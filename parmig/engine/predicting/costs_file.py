# SPDX-License-Identifier: Apache-2.0
"""Reads a file of ``--costs``."""

from __future__ import annotations

from pathlib import Path

from parmig.engine.prediction.costs import Costs, read_costs
from parmig.errors import UsageError


def read_costs_file(path: str) -> Costs:
    """The costs in the file *path*; empty: the defaults.

    Raises:
        UsageError: it cannot be read, or has something else.
    """
    if not path:
        return Costs()
    try:
        return read_costs(Path(path).read_bytes(), path)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; give the path of a file with costs") from error
