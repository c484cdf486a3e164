# SPDX-License-Identifier: Apache-2.0
"""The interface of a virtual machine monitor.

To add a monitor, implement :class:`Guest`: its memory as descriptors or as addresses in a process, a dirty log, pause
and resume, device state as bytes. The engine calls one method at a time, always from the same thread, in the order
given here. It never calls from a worker process. Only abort() comes from another thread, and close() may if a call
hangs.

Source::

    memory() ─ [rescue()] ─ start_dirty_log() ─ [settle(), sync_dirty_log(), throttle(percent)]* ─ [rescue()]
             ─ pause(sink) ─ ran_until_pause() ─ [rescue()] ─ [throttle(0)] ─ sync_dirty_log() ─ save_state(sink)
             ─ sync_dirty_log() ─ stop_dirty_log() ─ close()
    and from any point before hand-over: resume_source() ─ stop_dirty_log() ─ close()

Destination::

    memory() ─ prepare_incoming() ─ [adopt_memory()] ─ [write_state()]* ─ finish_load() ─ resume() ─ close()
    and from any point before resume(): discard() ─ close()

See ``docs/guests.md`` for a complete example.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence

from parmig.guests.guest_types import FoundGuest, GuestInfo, Rescue, StateSink, Whereabouts
from parmig.guests.trait import Trait
from parmig.ram.blocks import BlockMemory
from parmig.ram.dirty_log import DirtyLog, Segment

__all__ = ["DirtyLog", "FoundGuest", "Guest", "GuestInfo", "Rescue", "Segment", "StateSink", "Trait", "Whereabouts"]


class Guest(ABC):
    """One virtual machine on this host, on either side of a migration.

    Every method that waits has a limit of its own and raises :class:`~parmig.errors.GuestError` past it.
    """

    @abstractmethod
    def info(self) -> GuestInfo:
        """Describe the guest. Must not disturb it."""

    @abstractmethod
    def memory(self) -> Sequence[BlockMemory]:
        """The RAM blocks, each with what holds its bytes. Must not disturb the guest.

        The descriptors belong to the guest object and stay open until close().

        Raises:
            GuestRefusedError: the memory cannot be reached from outside; the message names the option that helps.
        """

    def lasting_blocks(self) -> Collection[str]:
        """Names of blocks whose memory files keep their content when this monitor ends. Must not disturb the guest.

        They may stay in place: the monitors of both sides map the same file, and the block is not copied. The default
        names none, so that all blocks are copied.
        """
        return ()

    def state_blocks(self) -> Mapping[str, int]:
        """Name and size in bytes of the RAM blocks that travel in the device state, as video memory may.

        They are not in :meth:`memory`. Only snapshots ask for them. Must not disturb the guest.
        """
        return {}

    def traits(self) -> Mapping[str, Trait]:
        """What else both sides compare if both have it, by name; at most eight. Must not disturb the guest."""
        return {}

    @abstractmethod
    def is_running(self) -> bool:
        """Whether the virtual CPUs run now. A guest that is paused at the start arrives paused."""

    def whereabouts(self) -> Whereabouts | None:
        """How another process finds this guest, should this one end in the middle of a hand-over.

        None, the default: the monitor ends with this process. Must not disturb the guest.
        """
        return None

    # -- source ---------------------------------------------------------------------------------

    @abstractmethod
    def start_dirty_log(self, kind: str) -> DirtyLog:
        """Begin to record writes to RAM by all threads and devices of the monitor.

        Args:
            kind: ``auto`` or the name of a tracker; ``none``: no block is copied, but pause() follows all the same.

        Raises:
            HostRefusedError: the host does not allow this kind; the message says how to allow it.
            GuestRefusedError: this guest has no such log.
        """

    def check_dirty_log(self, kind: str) -> None:
        """Raise what start_dirty_log() would raise, as far as that shows without touching the guest."""

    def sync_dirty_log(self) -> None:
        """Bring the shared log up to date: on return it holds every write made before the call.

        The monitor adds to the shared log only inside this call, so that workers may clear what they
        have read. Logs that are always current (pagemap, digest) have nothing to do here.
        """

    def settle(self) -> None:
        """Wait until every device write to RAM that had begun before the call has landed. The guest continues to run.

        A device that stores by pinned pages (direct I/O) makes its pages known to the dirty log when a request begins,
        and stores when it ends. A page that is scanned and re-armed in between would be read too early, and its new
        content would show in no scan. It is called between the two if ``DirtyLog.settle`` of start_dirty_log() is set.

        Raises:
            GuestError: they did not land in time; the guest continues to run.
        """

    def dirty_bitmap_fd(self) -> int:
        """(kind ``bitmap``) The descriptor of the shared log.

        It has one bit for each 4 KiB page, in little-endian 64-bit words (the vhost-user log layout), with the blocks
        in the order of ``memory()``, each beginning on a word. The guest owns the descriptor.
        """
        raise NotImplementedError(f"{type(self).__name__} keeps no dirty bitmap")

    @abstractmethod
    def stop_dirty_log(self) -> None:
        """End the recording and leave nothing attached. It may be called twice, or without a start."""

    @abstractmethod
    def pause(self, sink: StateSink) -> int:
        """Stop the virtual CPUs and all device activity. On return nothing writes RAM.

        State that the monitor sends while the guest still runs (QEMU's video memory) may already go to *sink*.

        Returns:
            the instant at which the guest stopped, on the clock of ``time.monotonic_ns()``.
        """

    def ran_until_pause(self) -> bool | None:
        """After pause(): whether it stopped a guest that ran. Such a guest must run again, on one side or the other.

        None, the default: nothing else pauses or resumes this guest, so the last is_running() is right.
        """
        return None

    @abstractmethod
    def save_state(self, sink: StateSink) -> None:
        """Write the device state of the paused guest to *sink*, while workers read its memory.

        May still write RAM: a scan follows.
        """

    def save_snapshot(self, sink: StateSink) -> None:
        """The same for a snapshot, after which the guest continues here: it keeps its disks."""
        self.save_state(sink)

    @abstractmethod
    def resume_source(self) -> int | None:
        """Undo everything. After a failure, a cancel or a snapshot, the guest runs (or stays paused) as before.

        It may be called in any state before the hand-over, also after a partial pause or save, and when nothing was
        done yet. It sets changed settings back, and ends a throttle.

        Returns:
            the instant from which on the guest ran again, on the clock of ``time.monotonic_ns()``; None if
            the monitor does not report it; then the time at which the call returns counts.
        """

    def rescue(self, *, settling: bool = False, pausing: bool = False) -> Rescue | None:
        """What another process must do to let the guest run here, if this process is killed before the hand-over.

        It is called before start_dirty_log(), when nothing was changed yet, right before pause(), and again after it,
        when it is known whether the guest ran. That last call must take no time. If settling stops the guest for a
        moment, it is called before and after that, too. None, the default: the guest does not depend on this process.

        Args:
            settling: the guest is about to be stopped to settle.
            pausing: pause() is the next call.
        """
        return None

    def abort(self) -> None:
        """Make the call that is under way in the other thread fail soon, if it waits for the monitor.

        It may be called from any thread, and never raises. All calls fail from now on, until the next
        resume_source(), which works again. The default does nothing, for guests whose calls return soon by themselves.
        """

    def finish_source(self) -> None:
        """After a completed migration: release what the source still holds. It stays paused."""

    def quit(self) -> None:
        """After a completed migration, if the user asked for it: end the monitor instead of leaving it paused."""
        raise NotImplementedError(f"{type(self).__name__} cannot be ended from here")

    def can_throttle(self) -> bool:
        """Whether :meth:`throttle` works. If the user wants it, this is called before anything is touched.

        Raises:
            GuestRefusedError: instead of False, if there is a reason to report.
        """
        return False

    def throttle(self, percent: int) -> None:
        """Let the virtual CPUs run only ``100 - percent`` % of the time. *percent* is 0 to 99; 0 is full speed.

        It returns at once and does not wait for a virtual CPU. The throttle is 0 again after resume_source(), is no
        part of the device state, and ends with this process at the latest.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be throttled")

    # -- destination ----------------------------------------------------------------------------

    @abstractmethod
    def prepare_incoming(self) -> None:
        """Prepare to take device state. The guest must not run, not even after loading."""

    adopts_memory = False
    """Whether :meth:`adopt_memory` works."""

    def adopt_memory(self, files: Mapping[str, int]) -> None:
        """Use the source's memory: *files* by block name, which are duplicated; none: new memory of the guest's own.

        Called before any state, also more than once. Nothing may be written there before resume(), whatever happens.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot use memory of another monitor")

    def prepare_restore(self) -> None:
        """The same for a snapshot, whose state has all pages of :meth:`state_blocks` and none of other blocks."""
        self.prepare_incoming()

    @abstractmethod
    def write_state(self, data: memoryview) -> None:
        """Take the next bytes of device state, exactly as the source's ``save_state`` wrote them.

        Bytes written by the source's ``pause`` may arrive while pages still move; bytes of
        ``save_state`` arrive only after all of RAM is in place.
        """

    @abstractmethod
    def finish_load(self) -> None:
        """All bytes were written: wait until the state is loaded. The guest stays paused.

        Raises:
            StateError: the monitor refused the state; the message quotes it.
        """

    @abstractmethod
    def resume(self) -> int:
        """The hand-over has happened: run the guest.

        Returns:
            the instant from which on the guest ran, on the clock of ``time.monotonic_ns()``.
        """

    def announce(self) -> None:
        """Help the network find the guest, which runs here now, after resume() or resume_source(). Default: nothing.

        Raises:
            GuestError: this failed; the guest runs.
        """

    def self_check(self) -> bool:
        """After resume(): let the guest run for a moment, pause it, and compare its memory with what its program wrote.

        Only a guest whose program knows what its memory must contain can do this.

        Returns:
            True: the memory is right. False, the default: there is nothing to check.

        Raises:
            GuestError: the memory is wrong; the message says where.
        """
        return False

    @abstractmethod
    def discard(self) -> None:
        """The migration failed: make sure that this copy never runs. It may be called before prepare_incoming()."""

    # -- both -----------------------------------------------------------------------------------

    def watch_fd(self) -> int | None:
        """A descriptor that becomes readable when the monitor dies (a pidfd), or None."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Release everything. Never raises; may be called twice."""

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
