# SPDX-License-Identifier: Apache-2.0
"""Metrics of a running command for Prometheus, made from its status when they are asked for.

This module needs ``prometheus-client``, of the extra ``metrics``; only ``--metrics`` and ``--metrics-file`` import it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator

import msgspec
from prometheus_client import CollectorRegistry, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from parmig.engine.observing.metrics_server import MetricsServer
from parmig.engine.reporting.report import Report
from parmig.engine.steering.desk import Desk
from parmig.engine.steering.engine_status import EngineStatus
from parmig.errors import HostRefusedError
from parmig.status import MigrationStatus

_logger = logging.getLogger(__name__)

FILE_EVERY_S = 5.0
"""How often the file is written while the command runs; node_exporter reads it every 15 s or so."""

Value = Callable[[EngineStatus], float | None]

GAUGES: tuple[tuple[str, str, Value], ...] = (
    ("parmig_round", "The round under way.", lambda now: now.round),
    ("parmig_memory_bytes", "Memory of the guest that moves.", lambda now: now.ram.total_bytes),
    ("parmig_remaining_bytes", "Memory that is dirty or was not sent yet.", lambda now: now.ram.remaining_bytes),
    ("parmig_rate_bytes_per_second", "Guest memory handled a second.", lambda now: now.ram.rate_bytes_per_s),
    ("parmig_dirty_rate_bytes_per_second", "What the guest wrote a second.", lambda now: now.ram.dirty_bytes_per_s),
    ("parmig_expected_downtime_seconds", "How long a pause would take.", lambda now: _s(now.expected_downtime_ms)),
    ("parmig_throttle_ratio", "The share of time taken from the guest.", lambda now: now.throttle_percent / 100),
    (
        "parmig_bandwidth_limit_bytes_per_second",
        "Limit of the rate; 0: none.",
        lambda now: now.limits.max_bandwidth_bytes_per_s,
    ),
    ("parmig_downtime_limit_seconds", "Limit of the pause.", lambda now: _s(now.limits.downtime_limit_ms)),
    ("parmig_interrupted_channels", "Channels without a connection.", lambda now: len(now.interrupted)),
)
"""Name, help and value of what has no label. A value that is None is left out."""


def _s(ms: float | None) -> float | None:
    return None if ms is None else ms / 1000


def metrics_of(status: EngineStatus, report: Report | None) -> Iterator[Metric]:
    """All metrics, from the *status* of a command and from its *report* once it has ended."""
    about = GaugeMetricFamily(
        "parmig_info", "What runs; always 1.", labels=("name", "command", "guest", "peer", "version")
    )
    about.add_metric((status.name, status.command, status.guest.kind, status.peer, status.parmig), 1)
    now = report.status if report is not None else status.status
    states = GaugeMetricFamily("parmig_status", "1 for the status of the command.", labels=("status",))
    for one in MigrationStatus:
        states.add_metric((one.value,), float(one.value == now))
    yield from (about, states)
    for name, text, value in GAUGES:
        if (number := value(status)) is not None:
            yield GaugeMetricFamily(name, text, value=number)
    yield from _traffic(status)
    yield from _durations(status, report)


def _traffic(status: EngineStatus) -> Iterator[Metric]:
    ram = status.ram
    yield CounterMetricFamily("parmig_transferred_bytes", "Bytes on the wire.", value=ram.transferred_bytes)
    pages = CounterMetricFamily("parmig_pages", "Pages of all rounds.", labels=("kind",))
    for kind, count in (("sent", ram.sent_pages), ("zero", ram.zero_pages), ("skipped", ram.skipped_pages)):
        pages.add_metric((kind,), count)
    text = "Bytes on the wire of each worker."
    workers = CounterMetricFamily("parmig_worker_transferred_bytes", text, labels=("worker", "path"))
    for one in status.per_worker:
        workers.add_metric((str(one.worker), one.path), one.wire_bytes)
    paths = GaugeMetricFamily("parmig_path_rate_bytes_per_second", "Rate of each path.", labels=("path",))
    for path, rate in status.rate_by_path_bytes_per_s.items():
        paths.add_metric((path,), rate)
    yield from (pages, workers, paths)


def _durations(status: EngineStatus, report: Report | None) -> Iterator[Metric]:
    total_ms = report.total_time_ms if report is not None else status.total_time_ms
    yield GaugeMetricFamily("parmig_total_time_seconds", "How long the command has run.", value=total_ms / 1000)
    if report is not None and report.downtime_ms is not None:
        text = "How long the guest was paused."
        yield GaugeMetricFamily("parmig_downtime_seconds", text, value=report.downtime_ms / 1000)
        parts = GaugeMetricFamily("parmig_downtime_phase_seconds", "Phases of the pause.", labels=("phase",))
        for name, ms in msgspec.structs.asdict(report.downtime_phases_ms).items():
            parts.add_metric((name,), ms / 1000)
        yield parts


class _OfDesk(Collector):
    """Collects from *desk* whenever somebody asks."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def collect(self) -> Iterable[Metric]:
        """All metrics, as they are now."""
        return metrics_of(self._desk.status, self._desk.report)


class Metrics:
    """Serves and writes the metrics of the command of *desk*.

    Args:
        desk: not owned.
        address: host and port to serve at; None: nowhere.
        file: to write for node_exporter's textfile collector; empty: none.

    Raises:
        HostRefusedError: the address or the file cannot be used.
    """

    def __init__(self, desk: Desk, address: tuple[str, int] | None, file: str) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_OfDesk(desk))
        self._file = file
        self._ends = threading.Event()
        self._server: MetricsServer | None = None
        self._writer: threading.Thread | None = None
        if file:
            try:
                self._write()
            except OSError as error:
                raise HostRefusedError(f"cannot write metrics to {file}: {error.strerror or error}") from error
        if address is not None:
            host, port = address
            try:
                self._server = MetricsServer(host, port, self._registry)
            except OSError as error:
                raise HostRefusedError(f"cannot serve metrics at {host}:{port}: {error.strerror}") from error
        if file:
            self._writer = threading.Thread(target=self._run, name="parmig-metrics", daemon=True)
            self._writer.start()

    def _run(self) -> None:
        goes_on = True
        while goes_on:
            goes_on = not self._ends.wait(FILE_EVERY_S)
            try:
                self._write()
            except OSError as error:
                _logger.warning("cannot write metrics to %s: %s", self._file, error.strerror or error)

    def _write(self) -> None:
        write_to_textfile(self._file, self._registry)

    def close(self) -> None:
        """Write the file for the last time, and serve no more."""
        self._ends.set()
        if self._writer is not None:
            self._writer.join()
        if self._server is not None:
            self._server.close()
