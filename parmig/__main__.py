# SPDX-License-Identifier: Apache-2.0
"""``python -m parmig`` is the ``parmig`` program."""

from parmig.cli import main

if __name__ == "__main__":
    main()
