# SPDX-License-Identifier: Apache-2.0
"""Links fail under a running migration, between two hosts of a network lab: it goes on where it was."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest

from parmig.units import MIB
from tests.integration.sides import Command, until
from tests.labs import needs_lab

pytestmark = needs_lab

if not pytestmark.args[0]:
    from parmig.experiments.netlab import Lab, Line, open_lab

GUEST = "synthetic:memory=64MiB,rate=2MiB/s"
RATE = 24 * MIB
"""Round 1 takes over two seconds."""

all_failures = pytest.mark.parametrize("failure", ["cut", "blackhole"])
every_transport = pytest.mark.parametrize("transport", ["tcp", "zmq"])


class Pair:
    """A migration between the two hosts of *lab*, whose sides are commands."""

    def __init__(self, stack: contextlib.ExitStack, lab: Lab, *options: str, guest: str = GUEST) -> None:
        a, b = lab.hosts
        listen = f"zmq+tcp://{lab.links[0].address(b)}:0"
        here: list[str] = []
        there: list[str] = []
        if len(lab.links) > 1:
            for link in lab.links:
                there += ["--path", link.address(b)]
                here += ["--path", f"{link.address(a)}-{link.address(b)}"]
        with b.entered():
            shape = GUEST.partition(",")[0]
            self.there = stack.enter_context(
                Command("receive", "--listen", listen, "--insecure", "--guest", shape, "--json", *there)
            )
        uri = self.there.uri()
        with a.entered():
            self.here = stack.enter_context(
                Command("send", uri, "--guest", guest, "--workers", "2", "--verify", "--json", *here, *options)
            )

    def both_show(self, words: str) -> None:
        """Wait until both sides have shown *words*."""
        until(lambda: words in self.here.errors and words in self.there.errors, words)

    def end(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Both reports of a migration that must complete with equal memories, each page placed as often as sent."""
        (code, sent), (other_code, received) = self.here.end(), self.there.end()
        assert (code, other_code) == (0, 0), (self.here.errors, self.there.errors)
        assert sent["verified"] is True
        for pages in ("sent_pages", "zero_pages"):
            assert sent["ram"][pages] == received["ram"][pages]
        return sent, received


@contextlib.contextmanager
def migration(*options: str, links: int = 1, begun: str = "active, round 1", **more: str) -> Iterator[tuple[Lab, Pair]]:
    """A migration that has shown *begun*; with several links, each worker has one of its own."""
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(open_lab([Line(RATE // links)] * links))
        pair = Pair(stack, lab, *options, **more)
        pair.here.wait_for(begun)
        yield lab, pair


@every_transport
@all_failures
def test_all_links_are_away_for_three_seconds(transport: str, failure: str) -> None:
    with migration("--transport", transport) as (lab, pair):
        began = time.monotonic()
        getattr(lab.links[0], failure)()
        pair.both_show("control: ")
        until(lambda: time.monotonic() - began >= 3, "three seconds")
        lab.links[0].restore()
        away_ms = (time.monotonic() - began) * 1000
        sent, received = pair.end()
        for report in (sent, received):
            channels = {outage["channel"] for outage in report["outages"]}
            assert "control" in channels
            assert channels & {"worker 0", "worker 1"}
            assert all(outage["ended"] for outage in report["outages"]), report["outages"]
            assert all(outage["lasted_ms"] < away_ms + 20_000 for outage in report["outages"]), report["outages"]


@pytest.mark.parametrize(("transport", "failure"), [("tcp", "cut"), ("zmq", "blackhole")])
def test_the_link_of_the_control_channel_is_lost_for_good(transport: str, failure: str) -> None:
    with migration("--transport", transport, "--reconnect-timeout", "20s", links=2) as (lab, pair):
        getattr(lab.links[0], failure)()
        sent, received = pair.end()
        for report in (sent, received):
            assert {outage["channel"] for outage in report["outages"]} >= {"control", "worker 0"}
            assert all(outage["ended"] for outage in report["outages"]), report["outages"]


@every_transport
def test_a_link_is_lost_in_the_last_round(transport: str) -> None:
    slow = ("--downtime-limit", "20s", "--transport", transport)
    guest = "synthetic:memory=64MiB,rate=100MiB/s"
    with migration(*slow, links=2, begun="pre-switchover", guest=guest) as (lab, pair):
        lab.links[1].blackhole()
        sent, _ = pair.end()
        assert {outage["channel"] for outage in sent["outages"]} == {"worker 1"}


@every_transport
def test_a_link_flaps(transport: str) -> None:
    with migration("--transport", transport) as (lab, pair):
        for number in range(1, 4):
            lab.links[0].blackhole()
            until(lambda number=number: pair.here.errors.count("control: ") >= 2 * number - 1, "an outage")
            lab.links[0].restore()
            until(lambda number=number: pair.here.errors.count("control: ") >= 2 * number, "its end")
        sent, _ = pair.end()
        assert sum(outage["channel"] == "control" for outage in sent["outages"]) == 3


def test_a_host_that_stays_away_is_given_up_and_the_guest_runs_on() -> None:
    with migration("--reconnect-timeout", "2s") as (lab, pair):
        lab.links[0].blackhole()
        code, report = pair.here.end()
        assert code == 1
        assert report["error"]["type"] == "PeerLostError"
        assert report["source_guest"] == "running"
        code, report = pair.there.end()
        assert code == 1
