# SPDX-License-Identifier: Apache-2.0
"""``parmig send --check`` names everything that keeps a guest from moving, and moves nothing."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from tests.integration.sides import LISTEN, Command

GUEST = ("--guest", "synthetic:memory=32MiB,rate=20MiB/s", "--workers", "2")


def traits(*disks: str) -> str:
    """Statements that give a synthetic guest these disks."""
    return (
        "from parmig.guests.synthetic.synthetic_guest import SyntheticGuest; from parmig.guests.trait import Trait; "
        f"SyntheticGuest.traits = lambda self: {{'disks': Trait({disks!r}, 'give it the same disk')}}"
    )


def receive(guest: str = "memory=32MiB", *options: str, prelude: str = "") -> Command:
    return Command("receive", "--listen", LISTEN, "--guest", f"synthetic:{guest}", "--json", *options, prelude=prelude)


def check(uri: str, *options: str, prelude: str = "") -> tuple[int, dict[str, Any], str]:
    with Command("send", uri, *GUEST, "--check", "--json", *options, prelude=prelude) as command:
        code, report = command.end()
        return code, report, command.errors


def test_a_guest_that_fits_is_checked_and_can_be_moved_afterwards() -> None:
    with receive() as there:
        for _ in range(2):
            code, report, errors = check(there.uri())
            assert (code, report["status"], report["mismatches"], report["error"]) == (0, "checked", [], None), errors
            assert (report["rounds"], report["guest"]["memory_bytes"]) == ([], 32 << 20)
        there.wait_for("a source checked this receiver: it fits")
        with Command("send", there.uri(), *GUEST, "--verify", "--json") as here:
            code, report = here.end()
            assert (code, report["status"], report["verified"]) == (0, "completed", True), here.errors
        assert there.end()[0] == 0, there.errors


def test_everything_to_mend_is_listed_at_once_and_the_receiver_waits_on() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    ports = ("--data-ports", f"{port}-{port}")
    with receive("memory=64MiB,blocks=2", *ports, prelude=traits("b")) as there:
        code, report, errors = check(there.uri(), prelude=traits("a", "c"))
        assert (code, report["status"], report["error"]["type"]) == (3, "failed", "PeerRefusedError"), errors
        assert "3 things to mend" in report["error"]["message"]
        found = {one.pop("what"): one for one in report["mismatches"]}
        assert found["RAM block 'ram1'"]["source"] == ""
        assert found["RAM block 'ram1'"]["destination"] == "32 MiB"
        assert found["disks"] == {"source": "a, c", "destination": "b", "advice": "give it the same disk"}
        assert found[f"--data-ports {port}-{port}"]["destination"] == "1 ports"
        assert there.process.poll() is None


@pytest.mark.parametrize("option", [(), ("--check",)])
def test_what_both_sides_describe_refuses_by_name(option: tuple[str, ...]) -> None:
    with receive(prelude=traits("b")) as there:
        with Command("send", there.uri(), *GUEST, *option, prelude=traits("a")) as wrong:
            assert wrong.process.stdout is not None
            output = wrong.process.stdout.read()
            assert wrong.process.wait(30) == 3
        words = "disks: a at the source, b at the destination (give it the same disk)"
        assert words in (output if option else wrong.errors)
        assert "Traceback" not in wrong.errors
        there.wait_for(words)
        with Command("send", there.uri(), *GUEST, "--json", prelude=traits("b")) as right:
            assert (right.end()[0], there.end()[0]) == (0, 0), right.errors + there.errors


def test_a_guest_that_cannot_be_slowed_down_is_one_thing_to_mend() -> None:
    cannot = "from parmig.guests.guest import Guest; from parmig.guests.synthetic import synthetic_guest as s; "
    cannot += "s.SyntheticGuest.can_throttle = Guest.can_throttle"
    with receive("memory=64MiB") as there:
        code, report, _ = check(there.uri(), "--auto-converge", prelude=cannot)
        assert code == 3
        assert [one["what"] for one in report["mismatches"]] == ["--auto-converge", "RAM block 'ram0': memory size"]


def test_nobody_there_is_an_error_and_nothing_to_mend() -> None:
    code, report, _ = check("zmq+tcp://127.0.0.1:1", "--connect-timeout", "200ms")
    assert (code, report["error"]["type"], report["mismatches"]) == (1, "PeerUnreachableError", [])
