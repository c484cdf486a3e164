# SPDX-License-Identifier: Apache-2.0
"""Experiments: sweeps over many migrations, the hosts that they run on, their results, tables and plots.

Heavy libraries (matplotlib, pyarrow, pandas, pyroute2) are in the extra ``experiments``, and are imported where they
are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["run"]


def run(
    sweep: Path | str | Mapping[str, Any],
    out: Path | str | None = None,
    *,
    cluster: str = "",
    progress: bool = True,
) -> pd.DataFrame:
    """Run a sweep as ``parmig bench`` does, and return its runs as a table.

    Args:
        sweep: path of a TOML file, the text of one, or the same as a mapping, such as
            ``{"hosts": "loopback", "factors": {"workers": [1, 2]}}``.
        out: directory for the results, where an interrupted sweep goes on; None: they are only returned.
        cluster: address of a Dask scheduler, as ``--cluster`` takes it.
        progress: show a bar.

    Returns:
        A row for each run, in the order in which they ended, warm-ups too; the columns are in docs/experiments.md.
        Lists, such as the rounds, are lists.

    Raises:
        UsageError: the sweep is wrong.
        HostRefusedError: this host lacks a program or a package, or there can be no lab.
        KeyboardInterrupt: it was interrupted. What the runs had started has ended.
    """
    from parmig.experiments import notebook  # pandas takes half a second to import

    return notebook.run(sweep, out, cluster=cluster, progress=progress)
