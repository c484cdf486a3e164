# SPDX-License-Identifier: Apache-2.0
"""Migrations over several paths between two hosts of the network lab."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from parmig.engine.paths.path_search import search
from parmig.linux.networks import device_to, own_addresses
from parmig.units import MIB
from tests.integration.sides import LIMIT_S, ROOT
from tests.labs import needs_lab

pytestmark = needs_lab

if not pytestmark.args[0]:
    from parmig.experiments.netlab import Lab, Line, open_lab

GUEST = "synthetic:memory=48MiB,rate=0,fill=random"
Answer = tuple[int, dict[str, Any], str]


def migrate(
    lab: Lab,
    receive: Sequence[str],
    send: Sequence[str],
    *,
    listen: str = "",
    meanwhile: Callable[[Callable[[str], None]], None] = lambda _: None,
    guest: str = GUEST,
) -> tuple[Answer, str]:
    """One migration from the first host to the second; what the sender printed, and what the receiver showed.

    Args:
        meanwhile: called in round 1 with a function that reads what the sender shows, up to a line with certain words.
    """
    source, destination = lab.hosts[:2]
    address = lab.links[0].address(destination)
    parmig = [sys.executable, "-m", "parmig"]
    argv = ["receive", "--listen", f"tcp://{listen or address}:0", "--guest", guest, "--insecure", *receive]
    with subprocess.Popen(
        destination.command(*parmig, *argv), cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as receiver:
        assert receiver.stderr is not None
        uri = next(line.split()[-1] for line in receiver.stderr if "listening on" in line)
        uri = f"tcp://{address}:{uri.rpartition(':')[2]}"
        argv = source.command(*parmig, "send", uri, "--guest", guest, "--json", *send)
        with subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sender:
            assert sender.stderr is not None
            lines: list[str] = []

            def read_until(words: str) -> None:
                for line in sender.stderr or ():
                    lines.append(line)
                    if words in line:
                        return

            read_until("active, round 1")
            meanwhile(read_until)
            output, rest = sender.communicate(timeout=LIMIT_S)
        if sender.returncode:
            receiver.terminate()
        shown = receiver.communicate(timeout=LIMIT_S)[1]
    return (sender.returncode, json.loads(output) if output else {}, "".join(lines) + rest), shown


@pytest.mark.parametrize("how", ["cut", "blackhole"])
@pytest.mark.parametrize("transport", ["tcp", "zmq"])
def test_a_lost_path_is_left_for_another(transport: str, how: str) -> None:
    with open_lab([Line(20 * MIB), Line(20 * MIB)]) as lab:
        pairs = pairs_of(lab)
        receive = [option for link in lab.links for option in ("--path", link.address(lab.hosts[1]))]
        send = [option for pair in pairs for option in ("--path", pair)]
        send += ["--workers", "2", "--transport", transport, "--verify"]
        lose = {"cut": lab.links[0].cut, "blackhole": lab.links[0].blackhole}[how]
        (code, report, shown), _ = migrate(lab, receive, send, meanwhile=lambda _: lose())
        assert code == 0, shown
        assert report["verified"]
        lost = {outage["channel"] for outage in report["outages"]}
        assert lost >= {"worker 0", "control"}
        assert "worker 1" not in lost
        assert all(lab.links[1].address(lab.hosts[1]) in one["route"] for one in report["outages"] if one["route"])


@pytest.mark.parametrize("transport", ["tcp", "zmq"])
def test_a_path_that_comes_back_is_used_again(transport: str) -> None:
    with open_lab([Line(12 * MIB), Line(12 * MIB)]) as lab:
        pairs = pairs_of(lab)
        receive = [option for link in lab.links for option in ("--path", link.address(lab.hosts[1]))]
        send = [option for pair in pairs for option in ("--path", pair)]
        send += ["--workers", "2", "--transport", transport, "--verify"]

        def flap(read_until: Callable[[str], None]) -> None:
            lab.links[0].cut()
            read_until("worker 0: connected again")
            lab.links[0].restore()

        guest = "synthetic:memory=200MiB,rate=0,fill=random"
        (code, report, shown), _ = migrate(lab, receive, send, meanwhile=flap, guest=guest)
        assert code == 0, shown
        assert report["verified"]
        routes = [one["route"] for one in report["outages"] if one["channel"] == "worker 0"]
        assert lab.links[1].address(lab.hosts[1]) in routes[0]
        assert lab.links[0].address(lab.hosts[1]) in routes[-1]


def pairs_of(lab: Lab) -> list[str]:
    return ["-".join(link.address(host) for host in lab.hosts[:2]) for link in lab.links]


@pytest.mark.parametrize("transport", ["tcp", "zmq"])
def test_every_named_path_carries_and_fast_ones_have_more_workers(transport: str) -> None:
    with open_lab([Line(), Line()]) as lab:
        pairs = pairs_of(lab)
        receive = [option for link in lab.links for option in ("--path", link.address(lab.hosts[1]))]
        send = ["--path", f"{pairs[0]}@200MiB/s", "--path", f"{pairs[1]}@20MiB/s", "--workers", "4", "--verify"]
        (code, report, shown), _ = migrate(lab, receive, [*send, "--transport", transport])
        assert code == 0, shown
        assert report["verified"]
        assert report["paths"] == sorted(pairs)
        assert [(one["path"], one["workers"]) for one in report["per_path"]] == [(pairs[0], 3), (pairs[1], 1)]
        assert all(one["wire_bytes"] > 0 for one in report["per_path"])
        assert sum(one["wire_bytes"] for one in report["per_path"]) == report["ram"]["wire_bytes"]
        assert f"paths: {pairs[0]} (3 workers, 10 Gbit/s, at most 200 MiB/s); {pairs[1]} (1 worker," in shown


@pytest.mark.parametrize(("transport", "receive"), [("tcp", ["--path", "auto"]), ("zmq", [])])
def test_all_pairs_are_found_but_one_that_is_cut(transport: str, receive: list[str]) -> None:
    with open_lab([Line(), Line(), Line()]) as lab:
        lab.links[1].blackhole()
        pairs = pairs_of(lab)
        listen = "" if receive else "0.0.0.0"
        send = ["--path", "auto", "--workers", "3", "--transport", transport]
        (code, report, shown), _ = migrate(lab, receive, send, listen=listen)
        assert code == 0, shown
        assert report["paths"] == [pairs[0], pairs[2]]
        assert [one["workers"] for one in report["per_path"]] == [2, 1]
        assert all(one["wire_bytes"] > 0 for one in report["per_path"])
        assert f"paths: {pairs[0]} (2 workers" in shown


def test_more_pairs_than_workers_are_left_out_and_named() -> None:
    with open_lab([Line(), Line(), Line()]) as lab:
        (code, report, shown), _ = migrate(lab, ["--path", "auto"], ["--path", "auto", "--workers", "2"])
        assert code == 0, shown
        assert report["paths"] == pairs_of(lab)[:2]
        assert "1 more need more --workers" in shown


def test_a_receiver_at_one_address_offers_that_only() -> None:
    with open_lab([Line(), Line()]) as lab:
        (code, report, shown), _ = migrate(lab, [], ["--path", "auto", "--workers", "2"])
        assert code == 0, shown
        assert report["paths"] == pairs_of(lab)[:1]


def test_a_limit_of_a_path_holds_for_all_its_workers() -> None:
    with open_lab([Line()]) as lab:
        send = ["--path", f"{pairs_of(lab)[0]}@40MiB/s", "--workers", "2"]
        (code, report, shown), _ = migrate(lab, [], send)
        assert code == 0, shown
        assert report["rounds"][0]["duration_ms"] >= 1000, "48 MiB at 40 MiB/s"


def test_an_address_that_nobody_listens_at_ends_the_migration() -> None:
    with open_lab([Line(), Line()]) as lab:
        (code, report, shown), _ = migrate(lab, [], ["--path", pairs_of(lab)[1], "--connect-timeout", "300ms"])
        assert code != 0
        assert report["source_guest"] == "running"
        assert lab.links[1].address(lab.hosts[1]) in shown + report["error"]["message"]


def test_pairs_of_two_networks_do_not_count_although_they_connect() -> None:
    with open_lab([Line(), Line()]) as lab:
        source, destination = lab.hosts
        with destination.entered():
            server = socket.create_server(("0.0.0.0", 0))
            there = own_addresses()
        with server, source.entered():
            here = own_addresses()
            assert [one.address for one in here] == [link.address(source) for link in lab.links]
            with socket.create_connection((there[1].address, server.getsockname()[1]), 10, (here[0].address, 0)):
                pass  # by the second link, from the address of the first
            assert device_to(there[1].address, here[0].address) == here[1].device
            found = search(here, there, [server.getsockname()[1]])
        assert [pair.path.addresses for pair in found] == pairs_of(lab)


def test_a_host_without_a_route_has_no_device_to_it() -> None:
    with open_lab([Line(MIB)]) as lab, lab.hosts[0].entered():
        address = lab.links[0].address(lab.hosts[0])
        assert device_to("192.0.2.1", address) is None
        assert device_to("fd00::1", address) is None
        assert device_to(address, address) == 1, "loopback"
