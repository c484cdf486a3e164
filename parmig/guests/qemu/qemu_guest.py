# SPDX-License-Identifier: Apache-2.0
"""An unmodified QEMU as a guest, on either side: see ``docs/qemu.md`` for what can be moved.

parmig moves the RAM. How device state is taken, and whether small memories such as video RAM travel with it, depends
on the option ``state``: see :mod:`.departure`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping, Sequence

from parmig.errors import GuestError, GuestRefusedError
from parmig.guests.guest import DirtyLog, Guest, GuestInfo, Rescue, StateSink, Trait, Whereabouts
from parmig.guests.qemu import qemu_traits, ram_list
from parmig.guests.qemu.announce import announce
from parmig.guests.qemu.attach import WriteTracking, attach
from parmig.guests.qemu.dirty_log import choose_log, tracked_ranges
from parmig.guests.qemu.found import whereabouts
from parmig.guests.qemu.hardware import Hardware
from parmig.guests.qemu.incoming import Incoming
from parmig.guests.qemu.memory_files import MappedBlock, close_memory, lasting_blocks, open_memory
from parmig.guests.qemu.qemu_process import (
    check_destination,
    check_source,
    machine_type,
    open_pidfd,
    quit_qemu,
)
from parmig.guests.qemu.qmp import Qmp
from parmig.guests.qemu.rescue import RescueNotes
from parmig.guests.qemu.settings import Settings
from parmig.guests.qemu.settle import Settling
from parmig.guests.qemu.state_choice import DEPARTURES, DEVICES, MIGRATE, check_devices
from parmig.ram.blocks import BlockMemory


class QemuGuest(Guest):
    """A QEMU process, reached by its QMP socket. Made by :func:`open_qemu`.

    Args:
        qmp: a session; owned from here on, also when this raises.
        pid: QEMU's process.
        incoming: whether this is the destination.
        way: how to settle, one of ``settle.WAYS``; empty: the first call tries which one works.
        state: how device state is taken, DEVICES or MIGRATE.

    Raises:
        GuestRefusedError: it cannot be migrated as it was started; the message has the option that helps.
        GuestError: QEMU failed meanwhile.
    """

    def __init__(self, qmp: Qmp, pid: int, *, incoming: bool, way: str = "", state: str = MIGRATE) -> None:
        self._qmp = qmp
        self._pid = pid
        self._pidfd = -1
        self._cpu_features: list[str] = []
        self._blocks: list[MappedBlock] = []
        self._tracking: WriteTracking | None = None
        self._hardware = Hardware(qmp)
        self._settling = Settling(qmp, way)
        self._settings = Settings(qmp)
        self._incoming = Incoming(qmp, self._settings)
        self._departure = DEPARTURES[state](qmp, self._hardware)
        self._rescue = RescueNotes(qmp, pid, state, self._departure, self._settings)
        try:
            (check_destination if incoming else check_source)(qmp)
            if state == DEVICES and not incoming:
                check_devices(qmp)
            self._pidfd = open_pidfd(pid, qmp.path)
            self._blocks = open_memory(qmp, pid, state)
            machine = machine_type(qmp)
        except BaseException:
            self.close()
            raise
        version = ".".join(str(number) for number in qmp.version)
        self._info = GuestInfo(
            kind="qemu",
            machine=machine,
            monitor=f"QEMU {version}",
            state=state,
            blocks_by_place=state == DEVICES,
        )

    def info(self) -> GuestInfo:
        """Machine type with its version, QEMU's own version, and ``devices`` or ``migrate``."""
        return self._info

    def memory(self) -> Sequence[BlockMemory]:
        """In order of their names: all blocks, or with ``state=migrate`` the shared memory backends."""
        return [block.memory for block in self._blocks]

    def lasting_blocks(self) -> Collection[str]:
        """Blocks in shared files, of backends without ``discard-data=on``.

        Raises:
            GuestError: QEMU is gone.
        """
        return lasting_blocks(self._qmp, self._blocks)

    def state_blocks(self) -> Mapping[str, int]:
        """Video memory, ROMs and the like, which QEMU moves itself with ``state=migrate``.

        Raises:
            GuestError: QEMU is gone.
        """
        moved = {block.memory.block.name for block in self._blocks}
        sizes = ram_list.block_sizes(self._qmp.monitor("info ramblock"))
        return {name: size_bytes for name, size_bytes in sizes.items() if size_bytes and name not in moved}

    def traits(self) -> Mapping[str, Trait]:
        return qemu_traits.ask_traits(self._qmp, self._cpu_features)

    def check_dirty_log(self, kind: str) -> None:
        choose_log(kind, self._hardware)

    def whereabouts(self) -> Whereabouts:
        """By its socket and process."""
        return whereabouts(self._qmp, self._pid)

    def is_running(self) -> bool:
        return bool(self._qmp.execute("query-status")["running"])

    def can_throttle(self) -> bool:
        """No: ``cpu-throttle`` is a part of QEMU's own RAM migration, which has nothing to do here.

        Raises:
            GuestRefusedError: always.
        """
        raise GuestRefusedError(
            "QEMU throttles its virtual CPUs only while it migrates their memory itself; leave out --auto-converge, "
            "allow a longer pause with --max-downtime, or limit QEMU's processor time yourself (cgroup cpu.max)"
        )

    def start_dirty_log(self, kind: str) -> DirtyLog:
        """Attach to QEMU's memory, and make its settings ready, so that failures show early.

        Args:
            kind: ``auto``, ``pagemap``, ``digest`` or ``none``.

        Raises:
            HostRefusedError: the host does not allow to attach.
            GuestRefusedError: kind ``bitmap``: QEMU does not share its own log.
            GuestError: QEMU refuses the settings.
        """
        kind, reason = choose_log(kind, self._hardware)
        try:
            self._departure.prepare(self._settings)
            if kind == "pagemap" and self._tracking is None:
                self._tracking = attach(self._pid, tracked_ranges(self._blocks))
        except BaseException:
            with contextlib.suppress(GuestError):
                self._settings.restore()
            raise
        if kind != "pagemap":
            return DirtyLog(kind=kind, reason=reason)
        segments = tuple(block.segments for block in self._blocks)
        return DirtyLog(kind="pagemap", pid=self._pid, segments=segments, reason=reason, settle=self._settling.way())

    def settle(self) -> None:
        self._settling.settle()

    def stop_dirty_log(self) -> None:
        """Detach. Never raises; calling it twice, or unstarted, is fine."""
        if self._tracking is not None:
            self._tracking.close()
            self._tracking = None

    def pause(self, sink: StateSink) -> int:
        """Stop the guest; with ``state=migrate`` QEMU sends its small memories to *sink* before.

        Returns:
            when the guest stopped (QEMU's STOP event), on the clock of ``time.monotonic_ns()``.

        Raises:
            GuestError: QEMU failed, or has other devices or RAM blocks than at the start of the dirty log.
        """
        return self._departure.pause(sink)

    def ran_until_pause(self) -> bool:
        """Whether it was running, as QEMU reports, when pause() stopped it.

        Raises:
            GuestError: QEMU is gone or hangs.
        """
        return self._departure.ran_until_pause()

    def save_state(self, sink: StateSink) -> None:
        """Write the device state, and let QEMU hand its disks over."""
        self._departure.save(sink, stays=False)

    def save_snapshot(self, sink: StateSink) -> None:
        """Write the device state; with ``state=devices`` QEMU keeps its disks."""
        self._departure.save(sink, stays=True)

    def resume_source(self) -> int | None:
        """Undo the pause, let the guest run if it ran until then, and set the settings back.

        Returns:
            when the guest ran (QEMU's RESUME event), on the clock of ``time.monotonic_ns()``; or None.

        Raises:
            GuestError: QEMU is gone or refuses.
        """
        self._qmp.go_on()
        try:
            self._settling.undo()
            ran_ns = self._departure.undo()
        except BaseException:
            # What went wrong first is what matters; QEMU is probably gone.
            with contextlib.suppress(GuestError):
                self._settings.restore()
            raise
        self._settings.restore()
        self._rescue.forget()
        return ran_ns

    def rescue(self, *, settling: bool = False, pausing: bool = False) -> Rescue:
        """Undo the pause, run, and set the settings back: from a process that has only the socket."""
        return self._rescue.note(settling=settling, pausing=pausing)

    def abort(self) -> None:
        """Make a wait for QEMU fail, as when its main loop hangs on a disk."""
        self._qmp.abort()

    def finish_source(self) -> None:
        """Release what QEMU holds, and set the settings back. It stays paused, with its disks given away.

        Raises:
            GuestError: QEMU is gone.
        """
        self._departure.finish()
        self._settings.restore()

    def quit(self) -> None:
        """End QEMU, and wait until it is gone. For a source that is no longer needed.

        Raises:
            GuestError: it does not go, not even by SIGKILL.
        """
        quit_qemu(self._qmp, self._pidfd)

    def prepare_incoming(self) -> None:
        """Set QEMU's capabilities and see to it that it does not run by itself after loading.

        Raises:
            GuestError: QEMU refuses or is gone.
        """
        self._incoming.prepare(shares_memory=self._info.state == MIGRATE)

    def prepare_restore(self) -> None:
        """As prepare_incoming(), for a stream without ``x-ignore-shared``: QEMU leaves alone what is not in it.

        Raises:
            GuestError: QEMU refuses or is gone.
        """
        self._incoming.prepare(shares_memory=False)

    def write_state(self, data: memoryview) -> None:
        self._incoming.write(data)

    def finish_load(self) -> None:
        self._incoming.finish()

    def resume(self) -> int:
        return self._incoming.resume()

    def announce(self) -> None:
        """Let each network device announce its address, as often as QEMU does after a migration.

        Raises:
            GuestError: QEMU is gone.
        """
        announce(self._qmp)

    def discard(self) -> None:
        """End QEMU if it was given any state; else leave it waiting, ready for another try.

        Raises:
            GuestError: it does not go, not even by SIGKILL.
        """
        self._incoming.discard(self._pidfd)

    def watch_fd(self) -> int | None:
        """A pidfd of QEMU; owned by this object."""
        return self._pidfd

    def close(self) -> None:
        """Detach, set settings back if QEMU lets us, and close everything. Never raises."""
        self.stop_dirty_log()
        self._departure.close()
        self._incoming.close()
        with contextlib.suppress(GuestError):
            self._settings.restore()
        self._qmp.close()
        close_memory(self._blocks)
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)
