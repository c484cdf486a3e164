# SPDX-License-Identifier: Apache-2.0
"""The commands around an engine that is made up here: what they print and how they end."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner, Result

from parmig.cli.app import app
from parmig.config import ReceiveConfig, SendConfig
from parmig.engine.reporting.report import (
    DowntimePhases,
    ErrorReport,
    GuestReport,
    Progress,
    Report,
    RoundReport,
    WorkerReport,
)
from parmig.engine.steering.desk import Desk
from parmig.errors import GuestError, GuestRefusedError
from parmig.guests import registry
from parmig.options import TEXT, Option, options_of
from parmig.values import CPUS, PATH_PAIR, PEER, PORTS

RECEIVE = ["receive", "--listen", "zmq+tcp://127.0.0.1:0", "--guest", "fake:yes"]
SEND = ["send", "zmq+tcp://127.0.0.1:1", "--guest", "fake:yes"]


class FakeGuest:
    """Only what commands and the demo call."""

    opened: ClassVar[list[FakeGuest]] = []
    check_error: ClassVar[Exception | None] = None

    def __init__(self, options: str, *, incoming: bool) -> None:
        if options == "refuse":
            raise GuestRefusedError("memory is confidential; start it without")
        if options == "break":
            raise ZeroDivisionError("a fault")
        self.incoming = incoming
        self.options = options
        self.calls: list[str] = []
        self.opened.append(self)

    def self_check(self) -> bool:
        self.calls.append("self_check")
        if self.check_error is not None:
            raise self.check_error
        return True

    def __enter__(self) -> FakeGuest:
        return self

    def __exit__(self, *_: object) -> None:
        self.calls.append("close")


class FakeEngine:
    """What the engine is to answer, and what it was asked."""

    def __init__(self) -> None:
        self.sent = Report(
            parmig="0",
            side="source",
            status="completed",
            verified=True,
            guest=GuestReport(kind="fake", memory_bytes=1 << 30),
            total_time_ms=1234.5,
            downtime_ms=12.5,
            rounds=[RoundReport(round=1, dirty_pages=5, sent_pages=5)],
            per_worker=[WorkerReport(worker=0), WorkerReport(worker=1)],
        )
        self.received = Report(parmig="0", side="destination", status="completed")
        self.configs: list[SendConfig | ReceiveConfig] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        engine = self

        class Sender:
            def __init__(self, guest: Any, uri: str, config: SendConfig, *, progress: Any = None) -> None:
                engine.configs.append(config)
                self.desk = Desk(self.cancel)
                self._progress: Callable[[Progress], None] | None = progress

            def start(self) -> Report:
                if self._progress:
                    self._progress(Progress(status="active", round=1, total_pages=10, handled_pages=5))
                return engine.sent

            def cancel(self) -> None:
                pass

        class Receiver:
            def __init__(self, guest: Any, config: ReceiveConfig, *, progress: Any = None, listening: Any) -> None:
                engine.configs.append(config)
                self.desk = Desk(self.cancel)
                self._listening = listening

            def receive_loop(self) -> Report:
                self._listening("zmq+tcp://127.0.0.1:4242")
                return engine.received

            def cancel(self) -> None:
                pass

        monkeypatch.setattr("parmig.cli.send.MigrationSender", Sender)
        monkeypatch.setattr("parmig.cli.send.MigrationChecker", Sender)
        monkeypatch.setattr("parmig.cli.receive.MigrationReceiver", Receiver)
        monkeypatch.setattr("parmig.cli.receive.ResumedReceiver", Receiver)
        monkeypatch.setattr("parmig.engine.demo.demo.MigrationSender", Sender)
        monkeypatch.setattr("parmig.engine.demo.demo.MigrationReceiver", Receiver)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEngine]:
    fake = FakeEngine()
    fake.install(monkeypatch)
    module = ModuleType("fake_guest_module")
    vars(module)["open_fake"] = FakeGuest
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(registry, "_SCHEMES", dict(registry._SCHEMES))
    registry.register("fake", "fake_guest_module:open_fake")
    registry.register("synthetic", "fake_guest_module:open_fake")
    monkeypatch.setattr(FakeGuest, "opened", [])
    monkeypatch.setattr(FakeGuest, "check_error", None)
    yield fake
    for guest in FakeGuest.opened:
        assert guest.calls[-1] == "close"


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def failure(kind: str, status: str = "failed") -> Report:
    error = ErrorReport(type=kind, message="the words", phase="active")
    return Report(parmig="0", side="source", status=status, error=error)


@pytest.mark.parametrize("command", [SEND, RECEIVE, ["demo"]])
def test_a_completed_migration_ends_with_0_and_one_object(engine: FakeEngine, command: list[str]) -> None:
    result = invoke(*command, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["status"] == "completed"
    assert result.stdout.count("\n") == 1


@pytest.mark.parametrize("command", [SEND, ["demo"]])
@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        ("WorkerError", "failed", 1),
        ("PeerRefusedError", "failed", 3),
        ("OutcomeUnknownError", "unknown", 4),
        ("CancelledError", "cancelled", 130),
        ("SomethingNew", "failed", 1),
    ],
)
def test_an_error_of_the_engine_gives_its_exit_code_and_still_one_object(
    engine: FakeEngine, command: list[str], kind: str, status: str, code: int
) -> None:
    engine.sent = failure(kind, status)
    result = invoke(*command, "--json")
    assert result.exit_code == code
    assert json.loads(result.stdout)["error"] == {"type": kind, "message": "the words", "phase": "active"}
    assert "parmig: the words (phase: active)" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", [SEND, RECEIVE])
def test_a_refused_guest_ends_with_3_and_a_report(engine: FakeEngine, command: list[str]) -> None:
    result = invoke(*command[:-1], "fake:refuse", "--json")
    told = json.loads(result.stdout)
    assert result.exit_code == 3
    assert told["status"] == "failed"
    assert told["error"]["type"] == "GuestRefusedError"
    assert told["guest"]["kind"] == "fake"
    assert told["side"] == ("source" if command is SEND else "destination")


def test_an_error_in_the_words_of_the_peer_cannot_steer_a_terminal(engine: FakeEngine) -> None:
    engine.sent = failure("PeerFailedError")
    assert engine.sent.error is not None
    engine.sent.error.message = "\x1b[2Jhello"
    assert "parmig: \\x1b[2Jhello" in invoke(*SEND).stderr


@pytest.mark.parametrize("command", [SEND, RECEIVE])
def test_an_unknown_scheme_is_bad_usage(engine: FakeEngine, command: list[str]) -> None:
    result = invoke(*command[:-1], "abacus:1", "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "parmig: unknown guest scheme 'abacus'" in result.stderr


def test_a_fault_of_parmig_shows_its_traceback_and_still_one_object(engine: FakeEngine) -> None:
    result = invoke(*SEND[:-1], "fake:break", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["type"] == "ZeroDivisionError"
    assert "Traceback" in result.stderr


def test_a_value_outside_its_limits_is_bad_usage(engine: FakeEngine) -> None:
    result = invoke(*SEND, "--batch", "8MiB", "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "8MiB is not allowed; expected a size from 256KiB to 4MiB" in " ".join(
        result.stderr.replace("│", "").split()
    )


def sample(one: Option) -> str:
    """A text for *one* that does not mean its default."""
    if one.choices:
        return next(choice for choice in one.choices if choice != one.default)
    samples = {
        PATH_PAIR: "10.0.0.1-10.0.0.2",
        PORTS: "4700-4731",
        PEER: "Host.test",
        CPUS: str(min(os.sched_getaffinity(0))),
        TEXT: "zmq+tcp://127.0.0.1:7",
    }
    return samples[one.unit] if one.unit in samples else one.unit.write(one.default // 2 or 2 * one.default or 1 << 30)


@pytest.mark.parametrize(
    ("command", "kind", "name"),
    [(SEND, SendConfig, name) for name in options_of(SendConfig)]
    + [(["receive", "--guest", "fake:yes"], ReceiveConfig, name) for name in options_of(ReceiveConfig)],
)
def test_every_option_arrives_in_the_configuration(
    engine: FakeEngine, command: list[str], kind: type[SendConfig | ReceiveConfig], name: str
) -> None:
    one = options_of(kind)[name]
    text = sample(one) if not one.is_flag else ""
    needed = ["--listen", ReceiveConfig().listen] if kind is ReceiveConfig and name != "listen" else []
    others = {"keys": "/keys"} if name == "peer" else {}
    needed += [word for other, value in others.items() for word in (f"--{other}", value)]
    result = invoke(*command, *needed, f"--{name}", *([text] if text else []))
    assert result.exit_code == 0, result.stderr
    value = one.read(text) if text else True
    assert engine.configs == [kind(**others, **{one.field: (value,) if one.is_repeated else value})]
    assert engine.configs != [kind()]


def test_an_option_may_be_given_several_times(engine: FakeEngine) -> None:
    assert invoke(*SEND, "--path", "10.0.0.1-10.0.0.2", "--path", "10.1.0.2").exit_code == 0
    assert invoke(*RECEIVE, "--path", "10.0.0.2", "--path", "10.1.0.2").exit_code == 0
    assert [list(map(str, one.paths)) for one in engine.configs] == [
        ["10.0.0.1-10.0.0.2", "10.1.0.2"],
        ["10.0.0.2", "10.1.0.2"],
    ]


def test_defaults_of_send_are_those_of_the_configuration(engine: FakeEngine) -> None:
    assert invoke(*SEND).exit_code == 0
    assert engine.configs == [SendConfig()]


def test_receive_says_where_it_listens_even_when_quiet(engine: FakeEngine) -> None:
    assert "listening on zmq+tcp://127.0.0.1:4242\n" in invoke(*RECEIVE, "--quiet", "--json").stderr


def test_a_guest_that_arrived_and_can_check_itself_does(engine: FakeEngine) -> None:
    assert invoke(*RECEIVE).exit_code == 0
    (guest,) = FakeGuest.opened
    assert guest.incoming
    assert guest.calls == ["self_check", "close"]


def test_a_guest_that_failed_to_arrive_is_not_checked(engine: FakeEngine) -> None:
    engine.received = failure("PeerLostError")
    assert invoke(*RECEIVE).exit_code == 1
    assert FakeGuest.opened[0].calls == ["close"]


@pytest.mark.parametrize("command", [RECEIVE, ["demo"]])
def test_a_guest_that_finds_its_memory_wrong_fails_the_command(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setattr(FakeGuest, "check_error", GuestError("page 7 is stale"))
    result = invoke(*command, "--json")
    told = json.loads(result.stdout)
    assert result.exit_code == 1
    assert told["error"] == {"type": "GuestError", "message": "page 7 is stale", "phase": "check"}


def test_the_summary_has_the_figures_a_person_looks_for(engine: FakeEngine) -> None:
    result = invoke(*SEND)
    assert "throttle" not in result.stdout
    for words in (
        "completed",
        "1 GiB of memory",
        "1234.5 ms",
        "12.5 ms",
        "dirty pages",
        "yes, both memories",
        "worker",
    ):
        assert words in result.stdout


def test_the_summary_shows_the_pause_without_the_comparison_first(engine: FakeEngine) -> None:
    engine.sent.downtime_ms = 220.0
    engine.sent.downtime_phases_ms = DowntimePhases(pause=3.0, final_pages=44.75, verify=172.25)
    lines = [line.split(maxsplit=1) for line in invoke(*SEND).stdout.splitlines()]
    assert ["downtime", "47.8 ms (and 172.2 ms more to compare both memories)"] in lines
    assert ["of", "which     pause 3.0 + final pages 44.8 ms"] in lines


@pytest.mark.parametrize(
    ("given", "compares"),
    [
        ([], ""),
        (["--verify"], "after"),
        (["--verify=after"], "after"),
        (["--verify=before"], "before"),
        (["--verify", "before"], "before"),
        (["--verify", "--quiet"], "after"),
    ],
)
def test_verify_needs_no_value(engine: FakeEngine, given: list[str], compares: str) -> None:
    assert invoke(*SEND, *given).exit_code == 0
    assert invoke(SEND[0], *given, *SEND[1:]).exit_code == 0
    assert [one.compares for one in engine.configs if isinstance(one, SendConfig)] == [compares] * 2


def test_the_summary_of_a_pause_without_comparison_has_only_that(engine: FakeEngine) -> None:
    engine.sent.downtime_phases_ms = DowntimePhases(pause=12.5)
    assert "downtime     12.5 ms\nof which     pause 12.5 ms\n" in invoke(*SEND).stdout


def test_the_summary_tells_of_a_throttle(engine: FakeEngine) -> None:
    engine.sent.rounds[0].throttle_percent = engine.sent.max_throttle_percent = 40
    words = invoke(*SEND).stdout
    assert "slowed down by up to 40 %" in words
    assert words.count("40 %") == 2


def test_progress_goes_to_standard_error_and_quiet_leaves_it_out(engine: FakeEngine) -> None:
    assert "active, round 1, 5/10 pages" in invoke(*SEND).stderr
    assert invoke(*SEND, "--quiet").stderr == ""


@pytest.mark.parametrize("verified", [False, None])
def test_a_demo_that_did_not_find_both_memories_equal_fails(engine: FakeEngine, verified: bool | None) -> None:
    engine.sent.verified = verified
    result = invoke("demo", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["phase"] == "verify"


def test_a_demo_whose_destination_failed_fails(engine: FakeEngine) -> None:
    engine.received = failure("StateError")
    assert json.loads(invoke("demo", "--json").stdout)["error"]["type"] == "StateError"


def test_the_demo_verifies_and_passes_its_options_on(engine: FakeEngine) -> None:
    options = ["--memory", "64MiB", "--dirty-rate", "5MiB/s", "--pattern", "hot", "--workers", "2", "--auto-converge"]
    invoke("demo", *options)
    config = next(one for one in engine.configs if isinstance(one, SendConfig))
    assert config.compares == "after"
    assert config.auto_converge
    assert config.workers == 2
    source, destination = FakeGuest.opened
    assert source.options == "memory=67108864,rate=5242880,pattern=hot"
    assert destination.options == "memory=67108864"
    assert (source.incoming, destination.incoming) == (False, True)


def test_a_demo_larger_than_the_host_is_refused(engine: FakeEngine) -> None:
    result = invoke("demo", "--memory", "1000TiB", "--json")
    assert result.exit_code == 3
    assert "--memory" in json.loads(result.stdout)["error"]["message"]


def test_a_qemu_demo_without_qemu_names_the_package(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    result = invoke("demo", "--guest", "qemu", "--json")
    assert result.exit_code == 3
    assert "qemu-system-x86" in json.loads(result.stdout)["error"]["message"]
