# SPDX-License-Identifier: Apache-2.0
"""An unmodified QEMU as a guest, on either side: see ``docs/guests.md`` for what it must be started with.

RAM is moved by parmig straight between the files behind it. Device state, and small memories such as video
RAM, are moved by QEMU's own migration with ``x-ignore-shared``, whose bytes go through parmig's sink.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence

import msgspec

from parmig.errors import GuestError, GuestRefusedError
from parmig.guests.guest import DirtyLog, Guest, GuestInfo, Rescue, StateSink, Trait
from parmig.guests.qemu import qemu_traits, ram_list
from parmig.guests.qemu.attach import WriteTracking, attach
from parmig.guests.qemu.dirty_log import choose_log, tracked_ranges
from parmig.guests.qemu.hardware import Hardware
from parmig.guests.qemu.incoming import Incoming
from parmig.guests.qemu.memory_files import MappedBlock, close_memory, open_memory
from parmig.guests.qemu.outgoing import Outgoing
from parmig.guests.qemu.qemu_process import (
    check_destination,
    check_source,
    has_ended,
    open_pidfd,
    quit_qemu,
    start_ticks,
)
from parmig.guests.qemu.qmp import Qmp
from parmig.guests.qemu.rescue import QemuRescue
from parmig.guests.qemu.settings import (
    DESTINATION_CAPABILITIES,
    DESTINATION_PARAMETERS,
    RESTORE_CAPABILITIES,
    SOURCE_CAPABILITIES,
    SOURCE_PARAMETERS,
    Settings,
)
from parmig.guests.qemu.settle import Settling
from parmig.ram.blocks import BlockMemory


class QemuGuest(Guest):
    """A QEMU process, reached by its QMP socket. Made by :func:`open_qemu`.

    Args:
        qmp: a session; owned from here on, also when this raises.
        pid: QEMU's process.
        incoming: whether this is the destination.
        way: how to settle, one of ``settle.WAYS``; empty: tried out.

    Raises:
        GuestRefusedError: it cannot be migrated as it was started; the message has the option that helps.
        GuestError: QEMU failed meanwhile.
    """

    def __init__(self, qmp: Qmp, pid: int, *, incoming: bool, way: str = "") -> None:
        self._qmp = qmp
        self._pid = pid
        self._pidfd = -1
        self._blocks: list[MappedBlock] = []
        self._tracking: WriteTracking | None = None
        self._hardware = Hardware(qmp)
        self._settling = Settling(qmp, way)
        self._settings = Settings(qmp)
        self._outgoing = Outgoing(qmp)
        self._incoming = Incoming(qmp)
        self._rescue: QemuRescue | None = None
        try:
            (check_destination if incoming else check_source)(qmp)
            self._pidfd = open_pidfd(pid, qmp.path)
            self._blocks = open_memory(qmp, pid, "migrate")
            machine = str(qmp.execute("qom-get", path="/machine", property="type")).removesuffix("-machine")
        except BaseException:
            self.close()
            raise
        version = ".".join(str(number) for number in qmp.version)
        self._info = GuestInfo(kind="qemu", machine=machine, monitor=f"QEMU {version}")

    def info(self) -> GuestInfo:
        """Machine type with its version, and QEMU's own version."""
        return self._info

    def memory(self) -> Sequence[BlockMemory]:
        """The shared memory backends, in order of their ids."""
        return [block.memory for block in self._blocks]

    def state_blocks(self) -> Mapping[str, int]:
        """Video memory, ROMs and the like, which QEMU moves itself.

        Raises:
            GuestError: QEMU is gone.
        """
        own = {one.memory.block.name for one in self._blocks}
        found = ram_list.block_sizes(self._qmp.monitor("info ramblock"))
        return {name: size_bytes for name, size_bytes in found.items() if size_bytes and name not in own}

    def traits(self) -> Mapping[str, Trait]:
        return qemu_traits.ask_traits(self._qmp)

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
        """Attach to QEMU's memory, and make its migration settings ready, so that failures show early.

        Args:
            kind: ``auto``, ``pagemap`` or ``digest``.

        Raises:
            HostRefusedError: the host does not allow to attach.
            GuestRefusedError: kind ``bitmap``: QEMU does not share its own log.
            GuestError: QEMU refuses the settings.
        """
        kind, reason = choose_log(kind, self._hardware)
        try:
            self._settings.apply(SOURCE_CAPABILITIES, SOURCE_PARAMETERS)
            if kind == "pagemap" and self._tracking is None:
                self._tracking = attach(self._pid, tracked_ranges(self._blocks))
        except BaseException:
            with contextlib.suppress(GuestError):
                self._settings.restore()
            raise
        if kind == "digest":
            return DirtyLog(kind="digest", reason=reason)
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
        """Let QEMU send its small memories to *sink* and stop the guest at the end of that.

        Returns:
            when the guest stopped (QEMU's STOP event), on the clock of ``time.monotonic_ns()``.

        Raises:
            GuestError: QEMU failed, or has other devices or RAM blocks than at the start of the dirty log.
        """
        stopped_ns = self._outgoing.pause(sink, begun=self._hardware.ask)
        self._hardware.check()
        return stopped_ns

    def ran_until_pause(self) -> bool:
        """Whether it was running, by QEMU's events, when its migration stopped it.

        Raises:
            GuestError: QEMU is gone or hangs.
        """
        return self._outgoing.ran_until_pause()

    def save_state(self, sink: StateSink) -> None:
        self._outgoing.save(sink)

    def resume_source(self) -> int | None:
        """Cancel whatever QEMU does, let the guest run if it ran until its pause, and set the settings back.

        Returns:
            when the guest ran (QEMU's RESUME event), on the clock of ``time.monotonic_ns()``; or None.

        Raises:
            GuestError: QEMU is gone or refuses.
        """
        self._qmp.go_on()
        try:
            self._settling.undo()
            ran_ns = self._outgoing.undo()
        except BaseException:
            # What went wrong first is what matters; QEMU is probably gone.
            with contextlib.suppress(GuestError):
                self._settings.restore()
            raise
        self._settings.restore()
        self._rescue = None
        return ran_ns

    def rescue(self, *, settling: bool = False) -> Rescue:
        """Cancel QEMU's migration, run, and set the settings back: from a process that has only the socket."""
        if self._rescue is None:
            capabilities, parameters = self._settings.foresee(SOURCE_CAPABILITIES, SOURCE_PARAMETERS)
            self._rescue = QemuRescue(
                path=self._qmp.path,
                limit_s=self._qmp.limit_s,
                pid=self._pid,
                started_ticks=start_ticks(self._pid),
                running=self.is_running(),
                paused=False,
                capabilities=capabilities,
                parameters=parameters,
            )
        elif self._outgoing.started:
            ran = self._outgoing.ran_until_pause()
            self._rescue = msgspec.structs.replace(self._rescue, running=ran, paused=True)
        else:
            running = self.is_running() if settling else self._rescue.running
            self._rescue = msgspec.structs.replace(self._rescue, running=running, paused=settling)
        return Rescue("parmig.guests.qemu.rescue:set_right", msgspec.msgpack.encode(self._rescue))

    def abort(self) -> None:
        """Make a wait for QEMU fail, as when its main loop hangs on a disk."""
        self._qmp.abort()

    def finish_source(self) -> None:
        """Set the settings back and drop the stream. QEMU stays paused, in ``postmigrate``.

        Raises:
            GuestError: QEMU is gone.
        """
        self._outgoing.close()
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
        self._settings.apply(DESTINATION_CAPABILITIES, DESTINATION_PARAMETERS)
        self._incoming.hold()

    def prepare_restore(self) -> None:
        """As prepare_incoming(), for a stream without ``x-ignore-shared``: QEMU leaves alone what is not in it.

        Raises:
            GuestError: QEMU refuses or is gone.
        """
        self._settings.apply(RESTORE_CAPABILITIES, DESTINATION_PARAMETERS)
        self._incoming.hold()

    def write_state(self, data: memoryview) -> None:
        self._incoming.write(data)

    def finish_load(self) -> None:
        self._incoming.finish()

    def resume(self) -> int:
        return self._incoming.resume()

    def discard(self) -> None:
        """End QEMU if it was given any state; else leave it waiting, ready for another try.

        Raises:
            GuestError: it does not go, not even by SIGKILL.
        """
        if self._incoming.given and not self._incoming.resumed:
            quit_qemu(self._qmp, self._pidfd)
            return
        try:
            self._settings.restore()
        except GuestError:
            # A connection ends a moment before its process does; one that is gone never runs.
            if not has_ended(self._pidfd, within_s=0.5):
                raise

    def watch_fd(self) -> int | None:
        """A pidfd of QEMU; owned by this object."""
        return self._pidfd

    def close(self) -> None:
        """Detach, set settings back if QEMU lets us, and close everything. Never raises."""
        self.stop_dirty_log()
        self._outgoing.close()
        self._incoming.close()
        with contextlib.suppress(GuestError):
            self._settings.restore()
        self._qmp.close()
        close_memory(self._blocks)
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)
