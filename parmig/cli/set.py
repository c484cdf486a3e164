# SPDX-License-Identifier: Apache-2.0
"""``parmig set``: change limits of a running command."""

from __future__ import annotations

from parmig.cli import options as o
from parmig.cli.output import print_json, showing_errors
from parmig.engine.reporting.change import Change
from parmig.engine.steering.steering_client import SteeringClient, the_only_one
from parmig.errors import UsageError


@o.command()
def set(  # noqa: A001 - it has the name of the command
    change: Change,
    output: o.JsonOutput,
    name: o.RunningCommand = "",
) -> None:
    """Change limits of a running command.

    They are in force when this ends, and the report of the command names them. A pause that has begun stays as it is.
    """
    with showing_errors():
        if change == Change():
            raise UsageError("say what to change, like parmig set --max-bandwidth 500MiB/s")
        with SteeringClient(the_only_one(name)) as client:
            client.change(change)
            status = client.status()
    if output.json:
        print_json(status)
