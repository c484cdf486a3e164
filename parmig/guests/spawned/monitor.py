# SPDX-License-Identifier: Apache-2.0
"""The monitor's end of the pipe: takes requests and sends replies, one at a time.

The process ends with its pipe.
"""

from __future__ import annotations

import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

import msgspec

from parmig.errors import GuestError, ParmigError, StateError, StatusError
from parmig.guests.guest import DirtyLog
from parmig.guests.pulse import PulseLog
from parmig.guests.spawned import monitor_messages as m
from parmig.state import StateRegistry


class Pipe(Protocol):
    """The monitor's end of the pipe (a connection of ``multiprocessing``)."""

    def poll(self, timeout: float | None) -> bool:
        """Whether something can be read. Waits for at most *timeout* seconds; None: without limit."""

    def recv_bytes(self) -> bytes:
        """The next message. Raises EOFError if the other end is closed."""

    def send_bytes(self, data: bytes) -> None:
        """Send a message."""


class Monitor(ABC):
    """A virtual machine, and the requests that it can carry out.

    Args:
        incoming: whether it waits for state, and must not run before that.

    Attributes:
        machine: what device state depends on; compared literally with the other side's.
        registry: all devices that have state.
        running: whether virtual CPUs and devices run now.
        pulse: what the guest notes of its speed; empty for one that does not.
    """

    machine: str

    def __init__(self, *, incoming: bool) -> None:
        self.registry = StateRegistry()
        self.running = False
        self.pulse = PulseLog()
        self._waits_for_state = incoming

    @abstractmethod
    def run(self) -> int:
        """Let it run, and return the instant from which it runs. Called only while it is paused."""

    @abstractmethod
    def pause(self) -> int:
        """Stop it if it runs, and return the instant from which nothing writes memory."""

    @abstractmethod
    def throttle(self, percent: int) -> None:
        """Let it run only ``100 - percent`` % of the time. It takes effect soon."""

    @abstractmethod
    def start_log(self, kind: str) -> DirtyLog:
        """Begin to record writes by *kind*."""

    @abstractmethod
    def sync_log(self) -> None:
        """Add what was written to the shared bitmap."""

    @abstractmethod
    def stop_log(self) -> None:
        """End the recording, if one is on."""

    @abstractmethod
    def damage(self) -> str:
        """The difference between memory and device state of the paused guest; empty: none."""

    @abstractmethod
    def answer(self) -> tuple[msgspec.Struct, str]:
        """The counters, and the last lines of the serial log."""

    def special(self, body: bytes) -> None:
        """Carry out a request that only this kind of guest knows. It decodes *body* itself."""
        raise GuestError("unknown request: this kind of guest has none of its own")

    def tick(self) -> float | None:
        """Do the work that is due by now. Called between requests.

        Returns:
            how many seconds may pass until the next call; None: nothing is due before the next request.
        """
        return None

    def handle(self, request: m.Request) -> m.Reply:
        """Carry out *request*.

        Raises:
            ParmigError: it failed. The guest is as before; only after a failed load it cannot be used any more.
        """
        match request:
            case m.Run():
                return m.Done(self._run())
            case m.Pause():
                stopped_ns = self.pause()
                self.running = False
                return m.Done(stopped_ns)
            case m.Throttle():
                self.throttle(request.percent)
            case m.StartLog():
                return m.Log(self.start_log(request.kind))
            case m.SyncLog():
                self.sync_log()
            case m.StopLog():
                self.stop_log()
            case m.Special():
                self.special(request.body)
            case m.TakePulse():
                pulse = self.pulse.since(request.since_ns)
                return m.PulseTaken(pulse.at_ns.tobytes(), pulse.pages.tobytes(), pulse.asked_bytes_per_s)
            case m.Ask():
                stats, text = self.answer()
                return m.Answer(msgspec.msgpack.encode(stats), text)
            case _:
                return self._handle_paused(request)
        return m.Done()

    def _handle_paused(self, request: m.Request) -> m.Reply:
        if self.running:
            raise StatusError(f"{type(request).__name__} needs a paused guest, and this one runs; pause it first")
        match request:
            case m.SaveState():
                if self._waits_for_state:
                    raise StatusError("this guest has no state to save: it waits for its own")
                return m.State(self.registry.save_all(machine=self.machine))
            case m.LoadState():
                if not self._waits_for_state:
                    raise StateError("state cannot be loaded: it was loaded before, or the guest is not incoming")
                self.registry.load_all(request.data, machine=self.machine)
                self._waits_for_state = False
            case m.Check():
                damage = self.damage()
                if damage:
                    raise GuestError(damage)
        return m.Done()

    def _run(self) -> int:
        if self._waits_for_state:
            raise StatusError("an incoming guest cannot run before its state is loaded")
        if self.running:
            return time.monotonic_ns()
        since_ns = self.run()
        self.running = True
        return since_ns


def serve(pipe: Pipe, make: Callable[[m.Start], Monitor]) -> None:
    """The monitor's process: serve *pipe* until it is closed.

    Args:
        make: makes the machine for the first request.
    """
    # The owner ends the guest, and it is the owner that acts on a Ctrl-C at the terminal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _serve(pipe, make)
    except (EOFError, ConnectionError):
        return


def _serve(pipe: Pipe, make: Callable[[m.Start], Monitor]) -> None:
    decoder = msgspec.msgpack.Decoder(m.Question)
    encoder = msgspec.msgpack.Encoder()
    monitor: Monitor | None = None
    while True:
        while not pipe.poll(None if monitor is None else monitor.tick()):
            pass  # tick() has work before the next request
        question = decoder.decode(pipe.recv_bytes())
        reply: m.Reply
        try:
            if isinstance(question.body, m.Start):
                monitor = make(question.body)
                reply = m.Started(monitor.machine)
            elif monitor is not None:
                reply = monitor.handle(question.body)
            else:
                raise StatusError(f"{type(question.body).__name__} cannot be answered: the machine was not created")
        except ParmigError as error:
            reply = m.Failed(type(error).__name__, str(error))
        except Exception as error:
            reply = m.Failed("GuestError", f"the guest's monitor failed: {error!r}")
        pipe.send_bytes(encoder.encode(m.Response(question.number, reply)))
