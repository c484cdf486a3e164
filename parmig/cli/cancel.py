# SPDX-License-Identifier: Apache-2.0
"""``parmig cancel``: cancel a running command."""

from __future__ import annotations

from parmig.cli import options as o
from parmig.cli.output import print_json, showing_errors
from parmig.engine.steering.steering_client import SteeringClient, the_only_one


@o.command()
def cancel(
    output: o.JsonOutput,
    name: o.RunningCommand = "",
) -> None:
    """Cancel a running command; its guest continues where it was.

    It does what Ctrl-C does there. After the hand-over it comes too late and changes nothing.
    """
    with showing_errors(), SteeringClient(the_only_one(name)) as client:
        status = client.status()
        client.cancel()
    if output.json:
        print_json(status)
