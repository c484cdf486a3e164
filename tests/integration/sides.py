# SPDX-License-Identifier: Apache-2.0
"""Both sides of a migration for tests: guests that can be held at a step, threads and processes that run a side."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil

from parmig.config import ReceiveConfig, SendConfig
from parmig.engine.channels.control import ControlChannel
from parmig.engine.destination.receiver import MigrationReceiver
from parmig.engine.destination.resumed_receiver import ResumedReceiver
from parmig.engine.destination_plan import destination_end
from parmig.engine.records.record_file import RecordFile
from parmig.engine.reporting.change import Change
from parmig.engine.reporting.report import Progress, Report
from parmig.engine.source.sender import MigrationSender
from parmig.engine.source_plan import source_end
from parmig.guests.guest import DirtyLog, StateSink
from parmig.guests.synthetic.options import parse_options
from parmig.guests.synthetic.synthetic_guest import SyntheticGuest
from parmig.units import MIB, NS_PER_S

ROOT = Path(__file__).resolve().parents[2]
LISTEN = "zmq+tcp://127.0.0.1:0"
ENDED = ("completed", "failed", "cancelled", "unknown")
LIMIT_S = 60.0
"""For anything at all; the machine may be busy."""

KNOWN_LIMIT_S = 20.0
"""A failure is promised to be known within one second. This is longer, for a busy machine, and far shorter than the
limit by which a failure would be known in any case: ``--reconnect-timeout``, a minute."""


def until(condition: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
    """Wait until *condition* is true and return its value."""
    deadline = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {limit_s:g} s for {what}"
        time.sleep(0.005)
    return value


class Discard:
    """A sink for state that nobody wants."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Forget it."""


class Gate:
    """Holds a call of the guest until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._open = threading.Event()

    def pass_(self) -> None:
        """(guest) Wait here."""
        self.reached.set()
        assert self._open.wait(LIMIT_S), "nobody opened the gate"

    def wait(self) -> None:
        """(test) Wait until the guest stands here."""
        assert self.reached.wait(LIMIT_S), "the guest never came to the gate"

    def open(self) -> None:
        """(test) Let it go on."""
        self._open.set()


class HeldGuest(SyntheticGuest):
    """A synthetic guest that may be asked from several threads and that waits at gates.

    Args:
        text: options of a synthetic guest.
        hold: methods that wait at a gate before they do anything.
        directory: where memory files lie, in place of memfds.
    """

    def __init__(
        self, text: str, *, incoming: bool = False, hold: Sequence[str] = (), directory: Path | None = None
    ) -> None:
        self._lock = threading.Lock()
        self._directory = directory
        self.gates = {name: Gate() for name in hold}
        super().__init__(parse_options(text), incoming=incoming)

    def _create_file(self, name: str, size_bytes: int) -> int:
        if self._directory is None:
            return super()._create_file(name, size_bytes)
        fd = os.open(self._directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        self._fds.append(fd)
        os.ftruncate(fd, size_bytes)
        return fd

    def _ask(self, *arguments: Any, **options: Any) -> Any:
        with self._lock:
            return super()._ask(*arguments, **options)

    def _at(self, name: str) -> None:
        if name in self.gates:
            self.gates[name].pass_()

    def start_dirty_log(self, kind: str) -> DirtyLog:
        self._at("start_dirty_log")
        return super().start_dirty_log(kind)

    def pause(self, sink: StateSink) -> int:
        self._at("pause")
        return super().pause(sink)

    def save_state(self, sink: StateSink) -> None:
        self._at("save_state")
        super().save_state(sink)

    def finish_load(self) -> None:
        self._at("finish_load")
        super().finish_load()

    def resume(self) -> int:
        self._at("resume")
        return super().resume()

    def open_gates(self) -> None:
        """Let everything go on."""
        for gate in self.gates.values():
            gate.open()

    def close(self) -> None:
        self.open_gates()
        super().close()


def allocated_bytes(guest: SyntheticGuest) -> int:
    """Of the guest's memory files."""
    return sum(os.fstat(memory.fd).st_blocks * 512 for memory in guest.memory())


def tracked_mappings(pid: int) -> int:
    """How many mappings of the process are registered for write tracking (smaps: uw)."""
    lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
    return sum(" uw" in line for line in lines if line.startswith("VmFlags"))


def runs_on(guest: SyntheticGuest) -> None:
    """The source after a failure: it runs as before, nothing is attached, and its memory is right. Pauses it."""
    assert guest.is_running()
    before = guest.stats().counter
    until(lambda: guest.stats().counter > before + 3, "the source's next ticks")
    assert tracked_mappings(guest.pid) == 0
    guest.pause(Discard())
    guest.check()


def never_ran(guest: SyntheticGuest) -> None:
    """The destination after a failure: gone, and never started."""
    assert not guest.is_running()
    assert guest._process is not None
    assert not guest._process.is_alive()


class Migration:
    """A receiver and a sender in threads of this process, or only one of them.

    Args:
        source: None: another process sends.
        destination: None: another process receives, at *uri*.
        config: of the sender.
        receive: of the receiver.
    """

    def __init__(
        self,
        source: HeldGuest | None,
        destination: HeldGuest | None,
        config: SendConfig | None = None,
        *,
        uri: str = "",
        receive: ReceiveConfig | None = None,
    ) -> None:
        self.source, self.destination = source, destination
        self._config = config or SendConfig(workers=2, verify=True)
        self._receive = receive or ReceiveConfig(listen=LISTEN)
        self.uri = uri
        self.sender: MigrationSender | None = None
        self.receiver: MigrationReceiver | None = None
        self.seen: list[Progress] = []
        self.received_progress: list[Progress] = []
        self._sent: list[Report] = []
        self._received: list[Report] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Migration:
        if self.destination is not None:
            self._start_receiver(self.destination)
        if self.source is not None:
            self._start_sender(self.source)
        return self

    def _start_receiver(self, guest: HeldGuest) -> None:
        heard: list[str] = []
        receiver = self.receiver = MigrationReceiver(
            guest, self._receive, listening=heard.append, progress=self.received_progress.append
        )
        self._thread(lambda: self._received.append(receiver.receive_loop()))
        until(lambda: heard or self._received, "the receiver to listen")
        self.uri = heard[0] if heard else ""

    def _start_sender(self, guest: HeldGuest) -> None:
        sender = self.sender = MigrationSender(guest, self.uri, self._config, progress=self.seen.append)
        self._thread(lambda: self._sent.append(sender.start()))

    def _thread(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target)
        thread.start()
        self._threads.append(thread)

    def __exit__(self, *_: object) -> None:
        for guest in (self.source, self.destination):
            if guest is not None:
                guest.open_gates()
        for side in (self.sender, self.receiver):
            if side is not None:
                side.cancel()
        for thread in self._threads:
            thread.join(LIMIT_S)
            assert not thread.is_alive(), "a side did not end"

    @property
    def status(self) -> str:
        """What the sender told last."""
        return self.seen[-1].status if self.seen else "none"

    @property
    def round(self) -> int:
        """What the sender told last."""
        return self.seen[-1].round if self.seen else 0

    def at_round(self, number: int) -> None:
        """Wait until round *number* or a later one has sent something.

        What the test does next happens while the guest still runs if the configuration has ``switchover="manual"``;
        without it, a busy machine may be through by then.
        """

        def there() -> bool:
            assert not self._sent, self._sent
            return any(one.status == "active" and one.round >= number and one.handled_pages > 0 for one in self.seen)

        until(there, f"round {number}")

    def switch_over(self, *lost: str) -> None:
        """Pause the guest at the end of this round; with *lost*, once the loss of these channels is known."""
        sender = self.sender
        assert sender is not None
        outages = sender._plan.record.outages
        until(lambda: set(lost) <= {one.channel for one in outages.reports(0, 0)}, f"the loss of {lost}")
        sender.desk.wish(Change(switchover="now")).result(LIMIT_S)

    def at_status(self, *statuses: str) -> None:
        """Wait until the sender tells of one of *statuses*."""
        until(lambda: self.status in statuses, " or ".join(statuses))

    def sent(self) -> Report:
        """The sender's report."""
        return until(lambda: self._sent and self._sent[0], "the sender's end")

    def received(self) -> Report:
        """The receiver's report."""
        return until(lambda: self._received and self._received[0], "the receiver's end")

    def send_workers(self) -> list[int]:
        """Process ids."""
        assert self.sender is not None
        return until(lambda: self.sender is not None and self.sender._pool.pids(), "send workers")

    def receive_workers(self) -> list[int]:
        """Process ids."""
        assert self.receiver is not None
        return until(lambda: self.receiver is not None and self.receiver._pool.pids(), "receive workers")


@contextlib.contextmanager
def listen_uri(transport: str = "auto") -> Iterator[str]:
    """Where a receiver listens for a sender with this ``--transport``."""
    if transport != "unix":
        yield LISTEN
        return
    with tempfile.TemporaryDirectory() as directory:
        yield f"unix://{directory}/socket"
        assert not os.listdir(directory)


def migrate(source: HeldGuest, destination: HeldGuest, **options: Any) -> tuple[Report, Report]:
    """One whole migration with these fields of SendConfig; both reports."""
    config = SendConfig(**({"workers": 2, "verify": True} | options))
    with (
        listen_uri(config.transport) as uri,
        Migration(source, destination, config, receive=ReceiveConfig(listen=uri)) as migration,
    ):
        return migration.sent(), migration.received()


def kill(pid: int) -> None:
    """SIGKILL, and wait until it is gone or a zombie."""
    process = psutil.Process(pid)
    os.kill(pid, signal.SIGKILL)

    def gone() -> bool:
        try:
            return process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    until(gone, f"the end of process {pid}")


# -- a side in a process of its own ------------------------------------------------------------------


class OtherSide:
    """A process that runs one side; a context manager that ends it.

    Args:
        role: ``send`` or ``receive``.
        options: see :func:`main`.
    """

    def __init__(self, role: str, **options: Any) -> None:
        self.lines: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.sides", json.dumps({"role": role} | options)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self._family: list[psutil.Process] = []

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._lock:
                self.lines.append(json.loads(line))

    def wait_for(self, key: str) -> Any:
        """The value of the first line that has *key*."""

        def find() -> list[Any]:
            with self._lock:
                found = [line[key] for line in self.lines if key in line]
            assert found or self._reader.is_alive(), f"it ended before it told {key}: {self.lines}"
            return found

        return until(find, key)[0]

    def open_gates(self) -> None:
        """Let its guest go on."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def remember_family(self) -> list[psutil.Process]:
        """All processes below it as of now."""
        self._family = psutil.Process(self.process.pid).children(recursive=True)
        return self._family

    def kill(self) -> None:
        """SIGKILL, and wait until it and all its processes are gone."""
        family = self.remember_family()
        self.process.kill()
        self.process.wait()
        until(lambda: not any(is_alive(one) for one in family), f"the end of {family}")

    def __enter__(self) -> OtherSide:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def is_alive(process: psutil.Process) -> bool:
    """Whether it is there and no zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _kill_at(point: str) -> None:
    """Kill this process by SIGKILL at *point*: ``before`` or ``after``, then ``write STATE``, ``send MESSAGE`` or a
    method of the guest.
    """
    when, what, name = (*point.split(), "")[:3]
    owner: Any = {"write": RecordFile, "send": ControlChannel}.get(what, HeldGuest)
    method = what if owner is HeldGuest else "write"
    original = getattr(owner, method)

    def hooked(self: Any, *arguments: Any, **changes: Any) -> Any:
        current = changes["state"].value if "state" in changes else type(arguments[0]).__name__ if arguments else ""
        here = owner is HeldGuest or (current == name and "settled" not in changes)
        if here and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(self, *arguments, **changes)
        if here:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, method, hooked)


def _cut_at(name: str) -> None:
    """Close the control channel in place of sending the message *name*, as if the network had lost it."""
    original = ControlChannel.write

    def hooked(self: Any, message: Any, *more: Any) -> None:
        if type(message).__name__ == name:
            self.transport.shutdown()
        else:
            original(self, message, *more)

    ControlChannel.write = hooked  # type: ignore[method-assign]


def ask_briefly() -> None:
    """Let this process ask whose the guest is, or wait for that question, for a second only."""
    source_end.NOBODY_NS = destination_end.ANSWER_LIMIT_NS = NS_PER_S


def _say(**line: Any) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main(options: dict[str, Any]) -> None:
    """The process: one side with guest ``guest``, held at ``hold``, killed at ``kill_at``, its connection cut at
    ``cut_at``; ``send`` and ``receive`` have fields of SendConfig and ReceiveConfig, records are in ``records``, and
    the guest's memory is in files in ``directory``. With ``brief`` it soon stops to ask whose the guest is, or to wait
    for that question.

    Prints one JSON object a line: ``pid`` of the guest, ``uri``, ``status`` and ``round``, ``at`` a gate,
    ``report`` and whether the guest ``runs`` then. A line on standard input opens all gates.
    """
    receives = options["role"] == "receive"
    if "records" in options:
        os.environ["PARMIG_STATE_DIR"] = options["records"]
    if options.get("brief"):
        ask_briefly()
    if "cut_at" in options:
        _cut_at(options["cut_at"])
    if "kill_at" in options:
        _kill_at(options["kill_at"])
    directory = Path(options["directory"]) if "directory" in options else None
    guest = HeldGuest(options["guest"], incoming=receives, hold=options.get("hold", ()), directory=directory)
    _say(pid=guest.pid)

    def watch(name: str, gate: Gate) -> None:
        gate.reached.wait()
        _say(at=name)

    for name, gate in guest.gates.items():
        threading.Thread(target=watch, args=(name, gate), daemon=True).start()
    threading.Thread(target=lambda: sys.stdin.readline() and guest.open_gates(), daemon=True).start()
    if receives:
        receiving = ReceiveConfig(**({"listen": LISTEN} | options.get("receive", {})))
        kind = ResumedReceiver if receiving.resume else MigrationReceiver
        report = kind(guest, receiving, listening=lambda uri: _say(uri=uri)).receive_loop()
    else:
        config = SendConfig(**({"workers": 2, "verify": True} | options["send"]))
        told = set()

        def progress(now: Progress) -> None:
            key = f"{now.status} {now.round} {now.handled_pages > 0}"
            if key not in told:
                told.add(key)
                _say(**{key: True, "status": now.status})

        report = MigrationSender(guest, options["uri"], config, progress=progress).start()
    _say(report=msgspec.to_builtins(report), runs=guest.is_running())
    sys.stdin.readline()
    guest.close()


# -- the command line --------------------------------------------------------------------------------


class Command:
    """A running ``parmig`` command; a context manager that ends it.

    Args:
        arguments: of the command; ``--json`` is added where a report is wanted.
        prelude: Python statements to run before the command.
        directory: that holds the parmig to run.
        wrapper: command that runs it, with other rights.
    """

    def __init__(self, *arguments: str, prelude: str = "", directory: Path = ROOT, wrapper: Sequence[str] = ()) -> None:
        start = ["-c", f"{prelude}\nfrom parmig.cli import main\nmain()"] if prelude else ["-m", "parmig"]
        self.process = subprocess.Popen(
            [*wrapper, sys.executable, *start, *arguments],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(directory)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.errors = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors += line

    def wait_for(self, text: str) -> None:
        """Wait until its standard error has *text*."""

        def found() -> bool:
            assert text in self.errors or self._reader.is_alive(), f"it ended without {text!r}: {self.errors}"
            return text in self.errors

        until(found, f"{text!r} on standard error")

    def uri(self) -> str:
        """Where a receiver listens."""
        self.wait_for("listening on ")
        until(lambda: self.errors.partition("listening on ")[2].partition("\n")[1], "the whole line")
        return self.errors.partition("listening on ")[2].partition("\n")[0]

    def end(self) -> tuple[int, dict[str, Any]]:
        """Exit code and the JSON report, if it printed one."""
        assert self.process.stdout is not None
        output = self.process.stdout.read()
        code = self.process.wait(LIMIT_S)
        self._reader.join()
        return code, json.loads(output) if output.strip() else {}

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


@contextlib.contextmanager
def guests(
    options: str = "memory=32MiB,rate=40MiB/s",
    *,
    hold_source: Sequence[str] = (),
    hold_destination: Sequence[str] = (),
    destination_options: str | None = None,
    directory: Path | None = None,
) -> Iterator[tuple[HeldGuest, HeldGuest]]:
    """A source and a destination that fit."""
    with HeldGuest(options, hold=hold_source) as source:
        shape = ",".join(
            item for item in options.split(",") if item.startswith(("memory", "blocks", "touched", "seed"))
        )
        with HeldGuest(
            shape if destination_options is None else destination_options,
            incoming=True,
            hold=hold_destination,
            directory=directory,
        ) as destination:
            yield source, destination  # type: ignore[misc]


__all__ = ["MIB"]

if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
