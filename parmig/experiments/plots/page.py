# SPDX-License-Identifier: Apache-2.0
"""The page of a sweep: one HTML file with everything in it, so that it can be sent and kept."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from parmig.experiments.results import Row
from parmig.experiments.sweep import Sweep
from parmig.experiments.table import FIGURES, Cell, Figure, cells, number_text, varied

PAGE = "index.html"

_HEADS = {
    "total_time_ms": "total time, ms",
    "rate_mib_per_s": "rate, MiB/s",
    "downtime_ms": "downtime, ms",
    "processor_s_per_gib": "processor, s/GiB",
}

_STYLE = """
:root { color-scheme: light; --ink: #222; --soft: #666; --line: #e2e2e2; --accent: #1f5fa8; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 1100px; margin: 2.5rem auto;
  padding: 0 1rem; background: #fff; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .4rem; border-top: 1px solid var(--line); padding-top: 1.2rem; }
p { max-width: 46rem; } .soft { color: var(--soft); }
nav a { color: var(--accent); text-decoration: none; margin-right: 1.1rem; display: inline-block; }
nav a:hover { text-decoration: underline; }
img { max-width: 100%; height: auto; display: block; margin: .8rem 0; }
.wide { overflow-x: auto; }
@media (max-width: 700px) { body { margin: 1.2rem auto; } h1 { font-size: 1.35rem; } img { max-width: none; } }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; margin: .8rem 0; }
th { text-align: left; font-weight: 600; border-bottom: 2px solid var(--line); padding: .35rem .8rem .35rem 0; }
td { border-bottom: 1px solid var(--line); padding: .28rem .8rem .28rem 0; white-space: nowrap; }
td.n, th.n { text-align: right; } td small { color: var(--soft); display: inline-block; min-width: 6.5rem; }
td.bar { background: linear-gradient(to right, #dbe8f6 var(--share), transparent var(--share)) no-repeat;
  background-size: calc(100% - .8rem) 100%; }
td.bar b { display: inline-block; min-width: 3rem; text-align: right; }
th.bar { padding-left: .55rem; }
pre { background: #f6f7f9; padding: .9rem 1.1rem; overflow-x: auto; font-size: .84rem; border-radius: 6px; }
"""


class Picture(NamedTuple):
    """A picture on the page: its heading, what it shows, and its SVG file."""

    title: str
    words: str
    path: Path


def write_page(directory: Path, sweep: Sweep, rows: Sequence[Row], pictures: Sequence[Picture]) -> Path:
    """Write the page into *directory*; its path. It refers to no other file."""
    counted = [row for row in rows if not row["warm_up"]]
    table = cells(counted, varied(counted))
    title = sweep.description or "Migrations"
    sections = [(picture.title, _picture(picture)) for picture in pictures]
    sections = [("Peers", _peers(table)), *sections] if len({cell.factors.peer for cell in table}) > 1 else sections
    sections += [
        ("All combinations", _combinations(table)),
        ("The sweep", _sweep(directory)),
        ("The host", _host(rows)),
    ]
    links = "".join(f'<a href="#s{number}">{escape(head)}</a>' for number, (head, _) in enumerate(sections))
    body = "".join(f'<h2 id="s{number}">{escape(head)}</h2>{text}' for number, (head, text) in enumerate(sections))
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f'<h1>{escape(title)}</h1><p class="soft">{_summary(counted, table)}</p><nav>{links}</nav>'
        f"{body}</body></html>\n"
    )
    path = directory / PAGE
    path.write_text(page, encoding="utf-8")
    return path


def _summary(rows: Sequence[Row], table: Sequence[Cell]) -> str:
    failed = sum(cell.failed for cell in table)
    words = f"{len(rows)} runs of {len(table)} combinations"
    words += f", {failed} of them failed" if failed else ", none failed"
    first, last = (_moment(pick(row["began"] for row in rows)) for pick in (min, max))
    return f"{words}. {escape(first)} to {escape(last if last[:10] != first[:10] else last[11:])} UTC."


def _moment(written: str) -> str:
    """``2026-11-30 18:04`` of what a row has as ``2026-11-30T18:04:55Z``."""
    return written[:16].replace("T", " ")


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode()
    image = f'<img alt="{escape(picture.title)}" src="data:image/svg+xml;base64,{data}">'
    return f'<p>{escape(picture.words)}</p><div class="wide">{image}</div>'


def _peers(table: Sequence[Cell]) -> str:
    """The best combination of each peer, where the best has the highest median rate."""
    best: dict[str, Cell] = {}
    for cell in table:
        if _rate(cell) > (_rate(best[cell.factors.peer]) if cell.factors.peer in best else 0):
            best[cell.factors.peer] = cell
    top = max(map(_rate, best.values()), default=0)
    lines = []
    for peer, cell in sorted(best.items(), key=lambda item: -_rate(item[1])):
        told = cell.label.removeprefix(peer).removeprefix(", ")
        lines.append(
            [f"<td>{escape(peer)}</td><td>{escape(told)}</td>", *_cells(cell.figures, {"rate_mib_per_s": top})]
        )
    words = "<p>The combination of each peer with the highest rate. "
    words += "iperf3 and bare pairs move no guest: they are limits. 48 MiB of a QEMU guest are zero pages.</p>"
    return words + _table(["peer", "at"], lines)


def _rate(cell: Cell) -> float:
    return cell.figures["rate_mib_per_s"].median if "rate_mib_per_s" in cell.figures else 0.0


def _combinations(table: Sequence[Cell]) -> str:
    top = {
        name: max((cell.figures[name].median for cell in table if name in cell.figures), default=0) for name in FIGURES
    }
    lines = []
    for cell in table:
        names = "".join(f"<td>{escape(text)}</td>" for text in cell.shown.values())
        runs = f'<td class="n">{cell.runs}{f" ({cell.failed} failed)" if cell.failed else ""}</td>'
        lines.append([names + runs, *_cells(cell.figures, top)])
    reasons = dict.fromkeys(reason for cell in table for reason in cell.reasons)
    failures = "".join(f"<li>{escape(reason)}</li>" for reason in reasons)
    heads = [*(table[0].shown if table else ()), "runs"]
    words = "<p>Medians, with the interval of 95 % by bootstrap where there are three runs or more.</p>"
    return words + _table(heads, lines) + (f"<p>Why runs failed:</p><ul>{failures}</ul>" if failures else "")


def _cells(figures: dict[str, Figure], top: dict[str, float]) -> list[str]:
    return [_figure(figures.get(name), top.get(name, 0)) for name in FIGURES]


def _figure(figure: Figure | None, top: float) -> str:
    if figure is None:
        return '<td class="n">–</td>'
    interval = ""
    if figure.low is not None and figure.high is not None:
        interval = f"{number_text(figure.low)} – {number_text(figure.high)}"
    share = f"{figure.median / top * 100:.0f}%" if top else "0%"
    return f'<td class="bar" style="--share:{share}"><b>{number_text(figure.median)}</b> <small>{interval}</small></td>'


def _table(heads: Iterable[str], lines: Iterable[Sequence[str]]) -> str:
    names = "".join(f"<th>{escape(head)}</th>" for head in heads)
    names += "".join(f'<th class="bar">{escape(head)}</th>' for head in _HEADS.values())
    rows = "".join(f"<tr>{''.join(line)}</tr>" for line in lines)
    return f'<div class="wide"><table><tr>{names}</tr>{rows}</table></div>'


def _sweep(directory: Path) -> str:
    return f"<pre>{escape((directory / 'sweep.toml').read_text(encoding='utf-8').strip())}</pre>"


def _host(rows: Sequence[Row]) -> str:
    """What the runs were measured on; values that changed meanwhile are all there."""
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name.startswith("host.")]
    lines = []
    for name in names:
        values = [row[name] for row in rows if name in row]
        if name.endswith(".load_average"):
            loads = sorted(value[0] for value in values)
            text = f"{loads[0]:g} to {loads[-1]:g} (one minute, when runs began)"
        else:
            text = ", ".join(dict.fromkeys(map(str, values)))
        lines.append(f"<tr><td>{escape(name.removeprefix('host.').replace('_', ' '))}</td><td>{escape(text)}</td></tr>")
    hosts = ", ".join(dict.fromkeys(row["hosts"] for row in rows))
    return f"<table>{''.join(lines)}<tr><td>both sides</td><td>{escape(hosts)}</td></tr></table>"
