# SPDX-License-Identifier: Apache-2.0
"""The command line: arguments, output, exit codes, and nothing else.

Worker processes import the console script's module again when they start, so this file imports nothing.
"""


def main() -> None:
    """Entry point of the ``parmig`` program."""
    from parmig.cli.app import app

    app(prog_name="parmig")
