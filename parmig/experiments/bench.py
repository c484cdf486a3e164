# SPDX-License-Identifier: Apache-2.0
"""A sweep from its text to its results, on this machine or on a cluster; for ``parmig bench`` and for notebooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from parmig.errors import UsageError
from parmig.experiments import running
from parmig.experiments.interruption import Interruption
from parmig.experiments.results import Results, open_results, require
from parmig.experiments.running import Step
from parmig.experiments.sweep import CLUSTER, parse_sweep, plan_of, text_for_cluster


class Bench:
    """A sweep that can be run.

    Args:
        text: of its TOML file.
        name: of the file, for messages.
        cluster: address of a Dask scheduler; empty: this machine.

    Attributes:
        plan: its runs.

    Raises:
        UsageError: as :func:`.parse_sweep` and :func:`.plan_of`; or the sweep and *cluster* do not fit.
    """

    def __init__(self, text: str, name: str, cluster: str = "") -> None:
        self._text = text_for_cluster(text, name) if cluster else text
        self._sweep = parse_sweep(self._text, name)
        self._cluster = cluster
        self.plan = plan_of(self._sweep)
        if self._sweep.hosts == CLUSTER and not cluster:
            raise UsageError(f'{name} has hosts = "{CLUSTER}"; name its scheduler by --cluster tcp://SCHEDULER:8786')

    @contextmanager
    def opened(self, directory: Path) -> Iterator[Results]:
        """Its results in *directory*, for this process alone.

        Raises:
            HostRefusedError: a package is not installed.
            UsageError: as :func:`.open_results`.
        """
        require("pyarrow")
        if self._cluster:
            require("distributed", extra="cluster")
        with open_results(directory, self._sweep, self._text) as results:
            yield results

    def run(self, results: Results, on_step: Callable[[Step], None], interruption: Interruption) -> None:
        """Run what *results* do not have yet.

        Raises:
            UsageError, HostRefusedError, KeyboardInterrupt: as :func:`.running.run_sweep`.
        """
        if self._cluster:
            from parmig.experiments.cluster import sweeping  # Dask takes half a second to import

            sweeping.run_sweep(self._cluster, self._sweep, self.plan, results, on_step, interruption)
        else:
            running.run_sweep(self._sweep, self.plan, results, on_step, interruption)
