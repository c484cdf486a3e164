# SPDX-License-Identifier: Apache-2.0
"""``parmig predict``: how long a migration would take, without moving anything."""

from __future__ import annotations

from rich.table import Table

from parmig.cli import options as o
from parmig.cli.output import print_json
from parmig.cli.progress import print_line
from parmig.cli.running import watching
from parmig.cli.signals import cancelling
from parmig.cli.tables import output_console, plain_table
from parmig.engine.predicting.predict_config import PredictConfig
from parmig.engine.predicting.prediction_report import PredictedCell, PredictionReport
from parmig.engine.predicting.predictor import Predictor
from parmig.engine.prediction.model import Estimate
from parmig.guests.registry import open_guest
from parmig.logs import printable
from parmig.units import NS_PER_MS, format_ms, format_rate, format_size, write_duration_ns

COLUMNS = ("row", "workers", "paths", "codec", "limit", "rate", "converges", "total", "pause", "rounds", "sent")

SURE = 0.95
"""From this probability on, a migration is said to converge, and from the rest to 1 on, not to."""


@o.command(config_file=True)
def predict(guest: o.GuestOption, config: PredictConfig, output: o.Output) -> None:
    """Predict how long migrations of a guest of this host would take, and its pauses, without moving it.

    The guest runs on, and nothing stays behind in it. A synthetic or KVM guest is started for the observation.
    """
    with watching(guest, output):
        report = _predict(guest, config, quiet=output.quiet)
    if output.json:
        print_json(report)
    else:
        _show(report)


def _predict(guest_text: str, config: PredictConfig, *, quiet: bool) -> PredictionReport:
    config.check()
    with open_guest(guest_text, incoming=False) as guest:
        predictor = Predictor(guest, config, (lambda _: None) if quiet else print_line)
        with cancelling(predictor.cancel):
            return predictor.start()


def _show(report: PredictionReport) -> None:
    console = output_console()
    for name, value in headline(report):
        console.print(f"{name:<12} {printable(value)}", soft_wrap=True)
    console.print(table(report))
    for number, cell in enumerate(report.predictions, 1):
        if cell.prediction.converges:
            continue
        console.print(f"row {number} does not converge: {cell.prediction.reason}", soft_wrap=True)
        for line in cell.advice or ["nothing that parmig can change would let it converge"]:
            console.print(f"  {line}", soft_wrap=True)


def headline(report: PredictionReport) -> list[tuple[str, str]]:
    """Name and value of each line above the table."""
    memory = f"{format_size(report.memory_bytes)}, of which {format_size(report.data_bytes)} hold data"
    written = ", ".join(
        f"{format_size(point.written_bytes)} within {format_ms(point.within_s * 1000)}" for point in report.working_set
    )
    codecs = ", ".join(
        f"{name} {codec.ratio:.0%} ({codec.rewritten_ratio:.0%} of what is rewritten)"
        for name, codec in report.codecs.items()
        if name != "none"
    )
    lines = [
        ("guest", report.guest),
        ("memory", memory),
        ("observed", f"{report.observed_s:.1f} s by {report.tracker}, in intervals of {format_ms(report.interval_ms)}"),
        ("written", written),
    ]
    if codecs:
        lines.append(("codecs", codecs))
    rate = _one_rate(report)
    return lines if rate is None else [*lines, ("network", rate)]


def table(report: PredictionReport) -> Table:
    """All predictions, a row each."""
    rows = [
        dict(zip(COLUMNS, (str(number), *_cells(cell)), strict=True))
        for number, cell in enumerate(report.predictions, 1)
    ]
    shown = [name for name in COLUMNS if name != "rate" or _one_rate(report) is None]
    return plain_table(
        shown, [[row[name] for name in shown] for row in rows], right={*COLUMNS} - {"codec", "converges"}
    )


def _one_rate(report: PredictionReport) -> str | None:
    """The rate of the network, if it is the same in all rows: it needs no column then."""
    rates = {_rate(cell) for cell in report.predictions}
    return rates.pop() if len(rates) == 1 else None


def _rate(cell: PredictedCell) -> str:
    return format_rate(cell.rate_bytes_per_s) if cell.rate_bytes_per_s else "no limit"


def _cells(cell: PredictedCell) -> list[str]:
    prediction = cell.prediction
    return [
        str(cell.workers),
        str(cell.paths),
        cell.compress,
        write_duration_ns(round(cell.downtime_limit_ms * NS_PER_MS)),
        _rate(cell),
        _sure(prediction.probability),
        _interval(prediction.total_s) if prediction.converges else "",
        _interval(prediction.downtime_s),
        f"{prediction.rounds.value:.0f}",
        format_size(prediction.wire_bytes.value),
    ]


def _sure(probability: float) -> str:
    if 1 - SURE < probability < SURE:
        return f"{probability:.0%}"
    return "yes" if probability >= SURE else "no"


def _interval(estimate: Estimate) -> str:
    """A time, with its interval if that is wider than 2 %, in the same unit."""
    scale, unit, digits = (1.0, "s", 1) if estimate.value >= 1 else (1000.0, "ms", 0)
    value, low, high = (f"{part * scale:.{digits}f}" for part in (estimate.value, estimate.low, estimate.high))
    if estimate.high - estimate.low <= 0.02 * estimate.value:
        return f"{value} {unit}"
    return f"{value} {unit} ({low} to {high})"
