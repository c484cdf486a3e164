# SPDX-License-Identifier: Apache-2.0
"""The command line: arguments, output, exit codes, and nothing else.

This file imports nothing heavy: ``parmig --help`` and ``parmig --version`` need none of it.
"""

import gc
import os


def main() -> None:
    """Entry point of the ``parmig`` program."""
    # Read when numpy is imported. OpenBLAS would start a thread for each core, which parmig has no work for: they cost
    # 60 ms of processor time, and the fork server cannot be forked from a process that has them.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

    # Imports leave no garbage, so looking for it only costs time. It begins once the command is imported.
    gc.disable()

    from parmig.cli.app import app

    app(prog_name="parmig")
