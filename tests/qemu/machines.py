# SPDX-License-Identifier: Apache-2.0
"""Real QEMUs for tests: a small Linux that ticks on its serial line and may write memory at a rate.

Environment: ``PARMIG_QEMU`` and ``PARMIG_KERNEL`` choose other programs. Everything a machine uses lies in one
directory under /dev/shm, so that a wrapper may run QEMU in a chroot that has it bound.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from parmig.errors import GuestRefusedError
from parmig.guests.qemu.layout import parse_host_address
from parmig.guests.qemu.qmp import Qmp
from parmig.guests.qemu.qmp_events import Listener

MIB = 1 << 20
QEMU = os.environ.get("PARMIG_QEMU", "qemu-system-x86_64")
BOOT_LIMIT_S = 150.0
LIMIT_S = 60.0
"""For anything else; the machine may be busy."""

QUICK_BOOT = "nokaslr mitigations=off cryptomgr.notests ipv6.disable=1 lsm=capability audit=0"
"""What the kernel need not do here. Its first tick takes 2.6 s of processor time, and without these 3.3 s."""

INIT = r"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc none /proc; mount -t devtmpfs none /dev; mkdir -p /t; mount -t tmpfs -o size=80% none /t
param() { sed -n "s/.*parmig\.$1=\([0-9]*\).*/\1/p" /proc/cmdline; }
rate=$(param rate)
dd if=/dev/urandom of=/t/a bs=1M count=$(param files) 2>/dev/null
[ "$rate" -gt 0 ] && (while true; do dd if=/dev/urandom of=/t/hot bs=64k count=16 conv=notrunc 2>/dev/null
                      usleep $((1000000 / rate)); done) &
i=0
while true; do
    i=$((i+1)); echo TICK $i $(cut -d' ' -f1 /proc/uptime) $(md5sum < /t/a | cut -c1-8); usleep 200000
done
"""


def missing() -> str | None:
    """What these tests need and do not find, or None."""
    for program in (QEMU, "busybox", "cpio"):
        if shutil.which(program) is None:
            return f"no {program}"
    if kernel() is None:
        return "no readable Linux kernel in /boot; set PARMIG_KERNEL"
    return None if os.geteuid() == 0 else "attaching to QEMU is tested as root"


def kernel() -> str | None:
    """The kernel to boot."""
    chosen = os.environ.get("PARMIG_KERNEL")
    found = [chosen] if chosen else [*sorted(glob.glob("/boot/vmlinuz-*"), reverse=True), "/vmlinuz"]
    return next((path for path in found if os.access(path, os.R_OK)), None)


def build_initrd(directory: Path) -> Path:
    """Write an initrd into *directory*."""
    return pack_initrd(busybox_root(directory / "root", INIT), directory / "initrd")


def busybox_root(root: Path, init: str) -> Path:
    """Make the tree of an initrd at *root*: busybox, and the script *init*, which it runs."""
    for name in ("bin", "proc", "dev"):
        (root / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "busybox", root / "bin" / "busybox")
    (root / "init").write_text(init)
    (root / "init").chmod(0o755)
    return root


def pack_initrd(root: Path, target: Path) -> Path:
    """Pack the tree below *root* into the initrd *target*, and remove it."""
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    archive = subprocess.run(
        ["cpio", "-o", "-H", "newc", "--quiet"], cwd=root, input=names.encode(), stdout=subprocess.PIPE, check=True
    )
    target.write_bytes(archive.stdout)
    shutil.rmtree(root)
    return target


def wait_until(condition: Callable[[], object], what: str, limit_s: float = LIMIT_S) -> None:
    """Wait for *condition*; AssertionError naming *what* after *limit_s* seconds."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {limit_s:g} s"
        time.sleep(0.01)


class QemuMachine:
    """A QEMU process with shared memory; a context manager that leaves nothing behind.

    Args:
        initrd: of :func:`build_initrd`; None starts without a kernel, paused (-S).
        memory_bytes: guest memory.
        incoming: start with ``-incoming defer``.
        rate: MiB per second that the guest writes.
        files: MiB of random data that the guest keeps and sums up at each tick.
        memory: options in place of the usual memory backend; ``{dir}`` is the machine's directory.
        extra: more options.
        program: the QEMU to run.
        accelerator: what runs the virtual CPUs.
        user: whose process it is; the machine's directory and sockets are open to the group of this number, too.
    """

    def __init__(
        self,
        initrd: Path | None = None,
        *,
        memory_bytes: int = 256 * MIB,
        incoming: bool = False,
        rate: int = 0,
        files: int = 4,
        memory: list[str] | None = None,
        extra: tuple[str, ...] = (),
        program: str = QEMU,
        accelerator: str = "tcg",
        user: int = 0,
    ) -> None:
        self._place = self.directory = Path(tempfile.mkdtemp(prefix="parmig-qemu-", dir="/dev/shm"))
        self._user = user
        if user:
            self._place.chmod(0o755)
            self.directory = self._place / "own"  # not itself in /dev/shm, to which everyone may write
            self.directory.mkdir(mode=0o750)
            os.chown(self.directory, user, user)
        self.socket = str(self.directory / "qmp")
        self._serial = self.directory / "serial"
        self._monitor: Qmp | None = None
        size = str(memory_bytes)
        backend = f"memory-backend-file,id=ram0,size={size},mem-path={{dir}}/ram,share=on"
        memory = memory or ["-machine", "pc,memory-backend=ram0", "-object", backend]
        self.command = [program, "-accel", accelerator, "-m", f"{size}B", "-nic", "none", "-display", "none"]
        self.command += ["-nodefaults"]
        self.command += [part.format(dir=self.directory) for part in memory]
        self.command += ["-vga", "std", "-serial", f"file:{self._serial}"]
        self._control = str(self.directory / "control")
        for path in (self.socket, self._control):
            self.command += ["-qmp", f"unix:{path},server=on,wait=off"]
        self.command += [part.format(dir=self.directory) for part in extra]
        if initrd:
            shutil.copy(initrd, self.directory / "initrd")
            append = f"console=ttyS0 quiet {QUICK_BOOT} parmig.rate={rate} parmig.files={files}"
            self.command += ["-kernel", kernel() or "", "-initrd", str(self.directory / "initrd"), "-append", append]
        self.command += ["-incoming", "defer"] if incoming else [] if initrd else ["-S"]

    def __enter__(self) -> Self:
        with (self.directory / "errors").open("wb") as errors:
            other: dict[str, Any] = {"user": self._user, "group": self._user, "extra_groups": [], "umask": 0o007}
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stderr=errors,
                stdout=errors,
                **(other if self._user else {}),
            )
        try:
            self.connect()
        except BaseException:
            self.__exit__()
            raise
        return self

    def disconnect(self) -> None:
        """Close the monitor of :meth:`ask`; :meth:`connect` opens it again."""
        if self._monitor:
            self._monitor.close()
        self._monitor = None

    def connect(self) -> None:
        """Undo :meth:`disconnect`."""
        wait_until(lambda: self._alive() and self._connect(), "QEMU's QMP socket")

    def _connect(self) -> bool:
        """Whether QEMU listens by now; its socket has a name a moment before. It greets only once all is set up."""
        with contextlib.suppress(GuestRefusedError):
            self._monitor = Qmp(self._control)
        return self._monitor is not None

    def _alive(self) -> bool:
        assert self.process.poll() is None, f"QEMU ended: {(self.directory / 'errors').read_text()}"
        return True

    def __exit__(self, *_: object) -> None:
        self.disconnect()
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self._place)

    @property
    def pid(self) -> int:
        """QEMU's process; a wrapper given by PARMIG_QEMU must exec it."""
        return self.process.pid

    def serial(self) -> str:
        """All that the guest wrote."""
        return self._serial.read_text(errors="replace") if self._serial.exists() else ""

    def wait_for_serial(self, text: str, limit_s: float = BOOT_LIMIT_S) -> None:
        """Wait until the guest wrote *text*."""
        wait_until(lambda: self._alive() and text in self.serial(), f"{text!r} from the guest", limit_s)

    def ticks(self) -> list[tuple[int, str]]:
        """The number and checksum of each tick so far."""
        return [(int(n), md5) for n, md5 in re.findall(r"TICK (\d+) [\d.]+ ([0-9a-f]{8})\b", self.serial())]

    def wait_for_ticks(self, more: int = 2, limit_s: float = BOOT_LIMIT_S) -> None:
        """Wait until the guest ticked *more* times from now."""
        wanted = len(self.ticks()) + more
        wait_until(lambda: self._alive() and len(self.ticks()) >= wanted, f"{more} more ticks", limit_s)

    def ask(self, command: str, **arguments: Any) -> Any:
        """Run a QMP command on a monitor of its own."""
        assert self._monitor
        return self._monitor.execute(command, **arguments)

    def host_address(self, gpa: int) -> int:
        """Where QEMU's process has guest physical address *gpa*, which is RAM."""
        answer = str(self.ask("human-monitor-command", **{"command-line": f"gpa2hva {gpa:#x}"}))
        address = parse_host_address(answer)
        assert address is not None, answer
        return address

    def listen(self, *names: str) -> Listener:
        """Take in events of these names from now on, on the monitor of :meth:`ask`."""
        assert self._monitor
        return self._monitor.listen(*names)

    def version(self) -> tuple[int, int]:
        """QEMU's major and minor number."""
        assert self._monitor
        return self._monitor.version[:2]

    def settings(self) -> tuple[Any, Any]:
        """Migration capabilities and parameters."""
        return self.ask("query-migrate-capabilities"), self.ask("query-migrate-parameters")

    def fds(self) -> dict[str, str]:
        """QEMU's descriptor table; a connection to its monitor is in it while it lasts."""
        base = f"/proc/{self.pid}/fd"
        found = {}
        for name in os.listdir(base):
            with contextlib.suppress(FileNotFoundError):  # QEMU closes a connection while we look
                found[name] = os.readlink(f"{base}/{name}")
        return found

    def maps(self) -> str:
        """QEMU's mappings."""
        return Path(f"/proc/{self.pid}/maps").read_text()

    def tracked_mappings(self) -> int:
        """How many mappings of QEMU have a userfaultfd for write protection (smaps: uw)."""
        text = Path(f"/proc/{self.pid}/smaps").read_text()
        return sum(" uw" in line for line in text.splitlines() if line.startswith("VmFlags"))


def goes_on(source: QemuMachine, destination: QemuMachine) -> None:
    """The guest ticks at the destination where it stopped at the source, and what it keeps is unchanged."""
    destination.wait_for_ticks(3)
    last, here = source.ticks()[-1]
    ticks = destination.ticks()
    assert last < ticks[0][0] <= last + 2  # the tick that was being written at the pause may be in neither file
    assert [number for number, _ in ticks] == list(range(ticks[0][0], ticks[0][0] + len(ticks)))
    assert {md5 for _, md5 in ticks} == {here}
