# SPDX-License-Identifier: Apache-2.0
"""What may be changed while a guest is being moved or saved."""

from __future__ import annotations

from typing import Annotated

import msgspec

from parmig.engine.work.policy import Limits
from parmig.errors import UsageError
from parmig.options import DURATION, RATE, option
from parmig.units import write_duration_ns

ON, OFF = "on", "off"


class Change(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """New values of some options of a running command. None and empty: the option stays as it is."""

    max_bandwidth_bytes_per_s: Annotated[
        int | None, option("Limit for all workers together; 0: no limit.", RATE, shown="unchanged")
    ] = None
    downtime_limit_ns: Annotated[
        int | None,
        option(
            "Pause the guest when the remaining pages can be transferred in this time.",
            DURATION,
            shown="unchanged",
        ),
    ] = None
    max_downtime_ns: Annotated[
        int | None,
        option(
            "If rounds stop getting smaller, pause anyway when the rest can be transferred in this time; 0: off.",
            DURATION,
            shown="unchanged",
        ),
    ] = None
    timeout_ns: Annotated[
        int | None,
        option(
            "Give up if the guest cannot be paused within this time from the start; 0: none.",
            DURATION,
            shown="unchanged",
        ),
    ] = None
    auto_converge: Annotated[
        str,
        option("Slow the guest down in steps if it writes faster than the network carries.", choices=(ON, OFF, "")),
    ] = ""
    switchover: Annotated[
        str, option("now: pause the guest at the end of this round, whatever remains.", choices=("now", ""))
    ] = ""


class ChangeReport(msgspec.Struct, kw_only=True):
    """A change that was made while the command ran, ``at_ms`` after its start."""

    at_ms: float
    change: Change


class SetRate(msgspec.Struct, frozen=True):
    """An instruction of the source's plan: limit the rate of all workers together; 0: no limit."""

    bytes_per_s: int


def changed(limits: Limits, change: Change) -> Limits:
    """*limits* with what *change* names.

    Raises:
        UsageError: a limit is negative, or a pause of an allowed length could not end before the switchover timeout.
    """
    numbers = (change.max_bandwidth_bytes_per_s, change.downtime_limit_ns, change.max_downtime_ns, change.timeout_ns)
    if any(number is not None and number < 0 for number in numbers) or change.downtime_limit_ns == 0:
        raise UsageError("a limit is negative, or the downtime limit is 0; expected more")
    after = msgspec.structs.replace(
        limits,
        downtime_ns=limits.downtime_ns if change.downtime_limit_ns is None else change.downtime_limit_ns,
        max_downtime_ns=limits.max_downtime_ns if change.max_downtime_ns is None else change.max_downtime_ns,
        timeout_ns=limits.timeout_ns if change.timeout_ns is None else change.timeout_ns,
        throttles=limits.throttles if not change.auto_converge else change.auto_converge == ON,
        pause_now=limits.pause_now or change.switchover == "now",
    )
    longest_ns = max(after.downtime_ns, after.max_downtime_ns)
    if 0 < after.switchover_ns <= longest_ns:
        raise UsageError(
            f"a pause may last {write_duration_ns(after.switchover_ns)} (--switchover-timeout), and this change would "
            f"allow one of {write_duration_ns(longest_ns)}; give a shorter limit"
        )
    return after
