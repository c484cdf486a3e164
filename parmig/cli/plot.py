# SPDX-License-Identifier: Apache-2.0
"""``parmig plot``: draw the results of a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parmig.cli import options as o
from parmig.cli.output import print_json, showing_errors
from parmig.experiments.results import require


@o.command()
def plot(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What parmig bench has written.")],
    output: o.JsonOutput,
) -> None:
    """Draw the results of a sweep, and write a page with pictures and tables.

    The pictures are PNG and SVG files in DIR. The page is DIR/index.html and needs no other file.
    """
    with showing_errors():
        require("matplotlib")
        from parmig.experiments.plots import plotting  # matplotlib takes half a second to import

        page = plotting.plot(directory)
    if output.json:
        print_json({"page": str(page), "pictures": sorted(str(path) for path in directory.glob("*.png"))})
    else:
        typer.echo(str(page))
