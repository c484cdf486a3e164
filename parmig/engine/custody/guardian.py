# SPDX-License-Identifier: Apache-2.0
"""The coordinator's end of the guardian: see ``workers.guardian``."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

from parmig.engine.messages import guardian_messages
from parmig.engine.messages.guardian_messages import Disarm, Guard, GuardianSetup, Leave, TakeOver
from parmig.engine.messages.message import encode
from parmig.errors import HostRefusedError
from parmig.guests.guest import Rescue
from parmig.processes import end_process, start_process

ARM_LIMIT_S = 10.0
"""How long the guardian may take to detach from this process and report that. It takes 10 ms."""

END_PATIENCE_S = 1.0


class Guardian:
    """The process that outlives this one if the guest needs it.

    It is no child of this process: it has a session of its own and takes none of the signals that end a group.

    Args:
        program: dotted name of the guardian program.

    Attributes:
        pid: its process, once armed; 0: there is none.
        log: the file in which it records what it does; empty: it could not make one.
    """

    def __init__(self, program: str) -> None:
        self._program = program
        self._connection: Any = None
        self._guarded: Rescue | None = None
        self.pid = 0
        self.log = ""

    def arm(self, rescue: Rescue | None, record: str = "") -> None:
        """Start it, unless *rescue* is None. On return it runs, whatever becomes of this process.

        Args:
            record: path of the record of the hand-over, by which it sees that the guest may run elsewhere; empty: none.

        Raises:
            HostRefusedError: it cannot be started.
        """
        if rescue is None:
            return
        setup = encode(GuardianSetup(log_directory(), record))
        process, self._connection = start_process(self._program, "parmig-guardian", setup, [])
        try:
            if not self._connection.poll(ARM_LIMIT_S):
                raise HostRefusedError(f"the guardian of the source guest did not start within {ARM_LIMIT_S:g} s")
            armed = guardian_messages.armed_decoder.decode(self._connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise HostRefusedError("the guardian of the source guest ended while it started") from error
        finally:
            end_process(process, patience_s=END_PATIENCE_S)  # its child is the guardian, and this process ends
        self.pid, self.log = armed.pid, armed.log
        self._guarded = None
        self.guard(rescue)

    def guard(self, rescue: Rescue | None) -> None:
        """Replace what the guardian calls to set the guest right; None, or the same again, changes nothing."""
        if rescue is not None and rescue != self._guarded:
            self._guarded = rescue
            self._tell(Guard(rescue.program, rescue.setup))

    def disarm(self) -> None:
        """Make the guardian leave the guest alone: nobody may resume it from now on."""
        self._guarded = None
        self._tell(Disarm())

    def take_over(self) -> bool:
        """Make the guardian begin although this process lives. Returns whether there is a guardian."""
        sent = self._tell(TakeOver())
        self._drop()
        return sent

    def _tell(self, message: Guard | Disarm | Leave | TakeOver) -> bool:
        if self._connection is None:
            return False
        try:
            self._connection.send_bytes(encode(message))
        except OSError:  # it was killed: then there is no guardian
            return False
        return True

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def close(self) -> None:
        """End it, unless it took over, and wait until it has ended. Calling it twice is fine."""
        if self._tell(Leave()):
            with contextlib.suppress(OSError):
                self._connection.poll(END_PATIENCE_S)  # readable once its end of the pipe is closed
        self._drop()


def log_directory() -> str:
    """The directory for the logs of guardians, in which only this user may write; empty: none could be made."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    parents = [runtime] if runtime else ["/run"] if os.geteuid() == 0 else []
    for path in (
        *(Path(parent) / "parmig" for parent in parents),
        Path(tempfile.gettempdir(), f"parmig-{os.geteuid()}"),
    ):
        with contextlib.suppress(OSError):
            path.mkdir(mode=0o700, exist_ok=True)
            entry = path.lstat()
            if stat.S_ISDIR(entry.st_mode) and entry.st_uid == os.geteuid() and not entry.st_mode & 0o022:
                return str(path)
    return ""
