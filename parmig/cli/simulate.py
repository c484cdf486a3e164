# SPDX-License-Identifier: Apache-2.0
"""``parmig simulate``: what migrations of a scenario would take, and costs from what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from parmig.cli import options as o
from parmig.cli.output import print_json, showing_errors
from parmig.cli.progress import print_line
from parmig.experiments.results import require
from parmig.options import COUNT, option


class SimulateOptions(o.JsonOutput, frozen=True, kw_only=True):
    """The options of the command."""

    picture: Annotated[
        str,
        option(
            "Draw when each guest moves, and what is in use, into FILE: a PNG or SVG.", metavar="FILE", shown="none"
        ),
    ] = ""
    seed: Annotated[int | None, option("Of what is drawn at random.", COUNT, shown="that of the scenario")] = None
    costs: Annotated[
        str, option("Use the costs in FILE, which --calibrate wrote.", metavar="FILE", shown="those of the scenario")
    ] = ""
    calibrate: Annotated[
        str,
        option(
            "Simulate nothing: find the costs that fit the runs in DIR, which parmig bench has written, and write them "
            "to SCENARIO.",
            metavar="DIR",
            shown="off",
        ),
    ] = ""


@o.command()
def simulate(
    scenario: Annotated[Path, typer.Argument(metavar="SCENARIO", help="A TOML file; see simulation.md.")],
    options: SimulateOptions,
) -> None:
    """Simulate guests that leave a host, and name what holds them back.

    Nothing is moved. No other host is needed.
    """
    with showing_errors():
        if options.calibrate:
            _calibrate(Path(options.calibrate), scenario, as_json=options.json)
        else:
            _simulate(scenario, options)


def _simulate(path: Path, options: SimulateOptions) -> None:
    require("simpy")
    from parmig.engine.predicting.costs_file import read_costs_file
    from parmig.experiments.simulation.result_text import result_text
    from parmig.experiments.simulation.scenario_file import read_scenario
    from parmig.experiments.simulation.simulator import simulate

    scenario = read_scenario(path)
    if options.seed is not None:
        scenario = msgspec.structs.replace(scenario, seed=options.seed)
    if options.costs:
        scenario = msgspec.structs.replace(scenario, loaded_costs=read_costs_file(options.costs))
    if options.picture:
        require("matplotlib")
        from parmig.experiments.simulation import picture  # matplotlib takes half a second to import

        picture.check_name(Path(options.picture))
    result, timeline = simulate(scenario)
    if options.picture:
        picture.draw(result, timeline, Path(options.picture))
    if options.json:
        print_json(result)
    else:
        typer.echo(result_text(result))


def _calibrate(results: Path, path: Path, *, as_json: bool) -> None:
    from parmig.experiments.simulation.calibration import calibrate, calibration_text

    calibration = calibrate(results)
    path.write_bytes(calibration.costs.encode())
    if as_json:
        print_json(calibration)
    else:
        typer.echo(calibration_text(calibration))
    print_line(f"wrote {path}")
