# SPDX-License-Identifier: Apache-2.0
"""The option ``state`` of QEMU guests: how device state is taken, and whether that works with this QEMU."""

from __future__ import annotations

from parmig.errors import GuestRefusedError
from parmig.guests.qemu import device_list
from parmig.guests.qemu.departure import Departure
from parmig.guests.qemu.live_only import disks_given_away, left_out
from parmig.guests.qemu.outgoing import Outgoing
from parmig.guests.qemu.qmp import Qmp
from parmig.guests.qemu.saved_devices import COMMAND, SAVED_STATES, SavedDevices

AUTO, DEVICES, MIGRATE = "auto", "devices", "migrate"
CHOICES = (AUTO, DEVICES, MIGRATE)

PREFERRED = DEVICES
"""What ``auto`` is where QEMU allows both."""

DEPARTURES: dict[str, type[Departure]] = {DEVICES: SavedDevices, MIGRATE: Outgoing}


def choose_state(qmp: Qmp, wanted: str) -> str:
    """DEVICES or MIGRATE.

    Args:
        wanted: one of CHOICES.

    Raises:
        GuestRefusedError: QEMU lacks the command for *wanted*.
        GuestError: QEMU is gone.
    """
    if MIGRATE in (wanted, PREFERRED) and wanted != DEVICES:
        return MIGRATE
    if any(command["name"] == COMMAND for command in qmp.execute("query-commands")):
        return DEVICES
    if wanted == AUTO:
        return MIGRATE
    raise GuestRefusedError(f"QEMU at {qmp.path} has no command {COMMAND}; use state=migrate")


def check_devices(qmp: Qmp) -> None:
    """Check that a source can be moved with DEVICES.

    Raises:
        GuestRefusedError: it cannot; the message says why and what to do.
        GuestError: QEMU is gone.
    """
    status = str(qmp.execute("query-status")["status"])
    if status not in SAVED_STATES:
        raise GuestRefusedError(
            f"the guest of QEMU at {qmp.path} is {status}, expected it to run or to be paused; use state=migrate"
        )
    nodes = qmp.execute("query-named-block-nodes", flat=True)
    capabilities = {item["capability"]: item["state"] for item in qmp.execute("query-migrate-capabilities")}
    lost = left_out(
        qmp.execute("query-target")["arch"],
        device_list.inventory(qmp.monitor("info qtree"), "").devices,
        nodes,
        moves_bitmaps=bool(capabilities.get("dirty-bitmaps")),
    )
    if lost:
        raise GuestRefusedError(
            f"QEMU at {qmp.path} saves its devices without {', '.join(lost)}; use state=migrate, or remove it"
        )
    # QEMU before 10.0 ends if it is to hand a disk over twice (assertion in bdrv_inactivate_recurse, block.c).
    if disks_given_away(nodes, qmp.execute("x-debug-query-block-graph")):
        raise GuestRefusedError(
            f"QEMU at {qmp.path} has given its disks away, so its guest was moved and may run elsewhere; to take them "
            "back and run it here, send QEMU the command cont"
        )
