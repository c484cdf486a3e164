# SPDX-License-Identifier: Apache-2.0
"""The program of ``--after-end``."""

from __future__ import annotations

import msgspec

from parmig.cli.progress import print_line
from parmig.engine.hooks import AFTER_END, Hooks
from parmig.engine.reporting.report import Report
from parmig.errors import HookError


def run_after(program: str, report: Report) -> None:
    """Run *program* with *report* on its standard input. A failure is shown, and changes nothing."""
    try:
        Hooks({AFTER_END: program}, lambda: None).run(AFTER_END, msgspec.json.encode(report))
    except HookError as error:
        print_line(f"after the end: {error}")
