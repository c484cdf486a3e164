# SPDX-License-Identifier: Apache-2.0
"""Watches a guest that is not moved, and predicts its migration in each setting of a grid."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Sequence

from parmig.config import SendConfig
from parmig.engine.predicting.costs_file import read_costs_file
from parmig.engine.predicting.link_rate import rate_to
from parmig.engine.predicting.memory_sample import MemorySample
from parmig.engine.predicting.predict_config import PredictConfig
from parmig.engine.predicting.prediction_report import PredictedCell, PredictionReport, WorkingSetPoint
from parmig.engine.prediction.costs import CodecCosts, Costs
from parmig.engine.prediction.grid import Cell, Observed, advice, cell
from parmig.engine.prediction.model import Prediction, predict
from parmig.engine.prediction.setting import MemoryFacts, Setting
from parmig.engine.prediction.working_set import WorkingSet, fit_history
from parmig.engine.prediction.write_history import WriteHistory
from parmig.engine.tracing.write_watch import WriteWatch
from parmig.engine.work.policy import Limits, throttle_steps
from parmig.errors import GuestError
from parmig.guests.guest import Guest
from parmig.ram.blocks import PAGE_BYTES, BlockMemory
from parmig.transport.transport import parse_uri
from parmig.units import GIB, NS_PER_MS, NS_PER_S

_logger = logging.getLogger(__name__)

INTERVAL_NS = 100 * NS_PER_MS
"""How often is looked which pages were written. Rounds shorter than this are predicted from the shape of the curve."""

INTERVAL_NS_PER_GIB = 20 * NS_PER_MS
"""It is looked less often at large guests. A scan of a GiB takes 1 to 5 ms, so watching takes a quarter of a processor
at most."""

MOST_INTERVALS = 400
"""A longer observation has longer intervals: 400 of them say enough."""

POINTS_S = (0.1, 1.0, 10.0, 100.0)
"""Times for which the report shows the working set."""


class Predictor:
    """Predicts migrations of *guest*.

    Args:
        guest: opened by the caller, who also closes it.
        config: which migrations.
        say: shows a line to the user.

    Attributes:
        observed: what was observed; None: nothing yet.
    """

    def __init__(self, guest: Guest, config: PredictConfig, say: Callable[[str], None] = lambda _: None) -> None:
        self._guest, self._config, self._say = guest, config, say
        self._sample: MemorySample | None = None
        self._memory = MemoryFacts(0, 0)
        self._watch: WriteWatch | None = None
        self.observed: Observed | None = None
        self._cancelled = False

    def cancel(self) -> None:
        """End the observation. Safe from a signal handler."""
        self._cancelled = True
        if self._watch is not None:
            self._watch.cancel()

    def start(self) -> PredictionReport:
        """Observe and predict.

        Raises:
            UsageError: the options contradict each other, or the costs cannot be read.
            HostRefusedError: the rate of the network is not known.
            CancelledError: :meth:`cancel` was called.
            GuestError: the monitor failed, or is gone.
        """
        config = self._config
        config.check()
        costs = read_costs_file(config.costs)
        rate = float(config.rate_bytes_per_s)
        if config.to and not rate:
            rate = rate_to(parse_uri(config.to))
        self._watch = watch = WriteWatch(self._guest, config.tracker, look=self._look)
        if self._cancelled:
            watch.cancel()
        try:
            working_set, interval_s = self._observe(watch)
            codecs = self._sample.codec_costs(costs) if self._sample is not None else {"none": CodecCosts()}
        finally:
            if self._sample is not None:
                self._sample.close()
        observed = self.observed = Observed(working_set, self._memory, codecs)
        cells = self._cells(rate, codecs, settles=bool(watch.log.settle))
        return self._report(watch, observed, interval_s, [self._predicted(observed, one, costs) for one in cells])

    def _look(self, memory: Sequence[BlockMemory]) -> None:
        self._sample = MemorySample(memory, ("lz4", "zstd", "delta"))
        self._memory = self._sample.look()

    def _observe(self, watch: WriteWatch) -> tuple[WorkingSet, float]:
        """How the guest writes, and the mean length of an interval in seconds."""
        observe_ns = self._config.observe_ns
        with watch:
            memory_pages = watch.memory_pages
            gib = memory_pages * PAGE_BYTES / GIB
            interval_ns = max(INTERVAL_NS, round(gib * INTERVAL_NS_PER_GIB), observe_ns // MOST_INTERVALS)
            self._say(f"watching for {observe_ns / NS_PER_S:g} s, by {watch.log.kind} ({watch.log.reason})")
            history = WriteHistory(memory_pages)
            last_ns = 0
            for pages, at_ns in watch.intervals(interval_ns, max(1, observe_ns // interval_ns)):
                if at_ns == last_ns:
                    continue  # one scan covers several intervals
                last_ns = at_ns
                history.add(pages)
                if self._sample is not None:
                    self._sample.wrote(pages)
        if not last_ns:
            raise GuestError("the guest was watched for no time at all; give a longer --observe")
        interval_s = last_ns / NS_PER_S / len(history)
        return fit_history(history, interval_s, memory_pages), interval_s

    def _cells(self, rate: float, codecs: dict[str, CodecCosts], *, settles: bool) -> list[Cell]:
        config = self._config
        here = os.cpu_count() or 1
        found = []
        for workers, paths, codec, limit_ns in itertools.product(
            config.worker_counts, config.path_counts, config.codecs, config.downtime_limits_ns
        ):
            setting = Setting(
                limits=Limits(limit_ns, throttle=throttle_steps(SendConfig()) if config.auto_converge else None),
                codec=codec,
                codec_costs=codecs.get(codec),
                source_processors=here,
                destination_processors=config.destination_cpus or here,
                one_host=config.one_host,
                cold=config.cold,
                settles=settles,
            )
            if paths <= workers:
                found.append(cell(setting, workers, paths, rate, config.max_bandwidth_bytes_per_s))
        return found

    def _predicted(self, observed: Observed, one: Cell, costs: Costs) -> PredictedCell:
        prediction: Prediction = predict(observed.working_set, observed.memory, one.setting, costs)
        setting = one.setting
        return PredictedCell(
            workers=setting.workers,
            paths=one.paths,
            compress=setting.codec,
            downtime_limit_ms=setting.limits.downtime_ns / NS_PER_MS,
            rate_bytes_per_s=setting.rate_bytes_per_s,
            prediction=prediction,
            advice=[] if prediction.converges else list(advice(observed, one, costs, throttle_steps(SendConfig()))),
        )

    def _report(
        self, watch: WriteWatch, observed: Observed, interval_s: float, cells: list[PredictedCell]
    ) -> PredictionReport:
        source, working_set = watch.source, observed.working_set
        times_s = sorted({*(time_s for time_s in POINTS_S if time_s <= working_set.observed_s), working_set.observed_s})
        return PredictionReport(
            parmig=source.parmig,
            guest=", ".join(filter(None, (source.kind, source.machine, source.monitor))),
            tracker=watch.log.kind,
            observed_s=working_set.observed_s,
            interval_ms=interval_s * 1000,
            memory_bytes=observed.memory.total_pages * PAGE_BYTES,
            data_bytes=observed.memory.data_pages * PAGE_BYTES,
            zero_bytes=observed.memory.zero_pages * PAGE_BYTES,
            working_set=[
                WorkingSetPoint(
                    within_s=time_s,
                    written_bytes=working_set.pages_within(time_s) * PAGE_BYTES,
                    spread=working_set.spread_within(time_s),
                )
                for time_s in times_s
            ],
            codecs=dict(observed.codecs),
            predictions=cells,
        )
