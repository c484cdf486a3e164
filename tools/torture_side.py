# SPDX-License-Identifier: Apache-2.0
"""``parmig`` with one more kind of guest, ``checked``: a synthetic guest that tells whether it is right at its end.

usage: python -m tools.torture_side send|receive ... --guest checked:OPTIONS

A synthetic guest ends with its command, so nobody else can ask it.
"""

from __future__ import annotations

import contextlib
import os
import sys

from parmig.cli import main
from parmig.engine.work import policy
from parmig.errors import GuestError
from parmig.guests.registry import register
from parmig.guests.synthetic.options import parse_options
from parmig.guests.synthetic.synthetic_guest import SyntheticGuest

ENDLESS = "PARMIG_TORTURE_ENDLESS"
"""The environment variable that lets a migration go on however little its rounds get smaller."""

RIGHT, WRONG = "the guest is right", "the guest is wrong"
"""Lines of standard error of a command whose guest ran at its end."""


class CheckedGuest(SyntheticGuest):
    """A guest that is checked, at the latest before its process ends, if it runs then."""

    def check(self) -> None:
        try:
            super().check()
        except GuestError as error:
            if self._process is not None and self._process.is_alive():  # it was not killed meanwhile
                print(f"{WRONG}: {error}", file=sys.stderr, flush=True)
            raise
        print(RIGHT, file=sys.stderr, flush=True)

    def close(self) -> None:
        with contextlib.suppress(GuestError):
            if self.is_running():
                self._stop()
                self.check()
        super().close()


def open_checked(options: str, *, incoming: bool) -> CheckedGuest:
    """As :func:`~parmig.guests.synthetic.synthetic_guest.open_synthetic`."""
    return CheckedGuest(parse_options(options), incoming=incoming)


if __name__ == "__main__":
    if os.environ.get(ENDLESS):
        policy.STALL_ROUNDS = 1 << 30
    register("checked", "tools.torture_side:open_checked")
    main()
