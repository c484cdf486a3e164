# SPDX-License-Identifier: Apache-2.0
"""The network lab: hosts that reach each other by links, and links that fail while traffic flows."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from parmig.errors import UsageError
from parmig.units import MIB, NS_PER_MS
from tests.integration.sides import LIMIT_S, ROOT, is_alive, until
from tests.labs import needs_lab

pytestmark = needs_lab

if not pytestmark.args[0]:
    from parmig.experiments import netlab
    from parmig.experiments.netlab import Lab, Line, Link, open_lab
    from parmig.experiments.netlab_host import index_of
    from tools.netlab import describe, obey, parse_line


@contextlib.contextmanager
def connected(lab: Lab, link: Link) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection over *link*: the end in the first host, and the one in the second."""
    a, b = lab.hosts[:2]
    with b.entered(), socket.create_server((link.address(b), 0)) as server:
        with a.entered():
            client = socket.create_connection(server.getsockname(), 10, (link.address(a), 0))
        with client, server.accept()[0] as other:
            other.settimeout(LIMIT_S)
            yield client, other


def arrives(pair: tuple[socket.socket, socket.socket]) -> None:
    """Whether a byte arrives, which it must."""
    pair[0].sendall(b"x")
    assert pair[1].recv(1) == b"x"


def vanishes(pair: tuple[socket.socket, socket.socket]) -> None:
    """Send a byte, and see that TCP sends it again and again and it does not arrive."""
    pair[0].sendall(b"y")
    retransmits = 2  # struct tcp_info of linux/tcp.h
    until(lambda: pair[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[retransmits] >= 2, "retransmissions")
    pair[1].setblocking(False)
    with pytest.raises(BlockingIOError):
        pair[1].recv(1)
    pair[1].settimeout(LIMIT_S)


def carrier(lab: Lab, link: Link) -> list[str]:
    """The state of the link's cards."""
    states = []
    for host in lab.hosts:
        with host.netlink() as ip:
            states.append(ip.link("get", ifname=link.card)[0].get_attr("IFLA_OPERSTATE"))
    return states


def test_every_host_reaches_every_other_by_each_link() -> None:
    with open_lab([Line(), Line(10 * MIB)], hosts=3) as lab:
        for link in lab.links:
            for host in lab.hosts:
                with host.entered(), socket.create_server((link.address(host), 0)) as server:
                    for other in lab.hosts:
                        with other.entered(), socket.create_connection(server.getsockname(), 10) as client:
                            assert client.getsockname()[0] == link.address(other)


def test_a_cut_link_delivers_again_when_it_is_restored() -> None:
    with open_lab([Line(10 * MIB), Line(10 * MIB)]) as lab:
        cut, whole = lab.links
        with connected(lab, cut) as pair, connected(lab, whole) as other_pair:
            arrives(pair)
            cut.cut()
            until(lambda: carrier(lab, cut) == ["DOWN", "DOWN"], "the loss of the carrier")
            vanishes(pair)
            arrives(other_pair)
            cut.restore()
            assert carrier(lab, cut) == ["UP", "UP"]
            assert pair[1].recv(1) == b"y", "what TCP has kept"
            arrives(pair)


def test_a_blackhole_has_a_carrier_and_delivers_nothing() -> None:
    with open_lab([Line()]) as lab, connected(lab, lab.links[0]) as pair:
        arrives(pair)
        lab.links[0].blackhole()
        vanishes(pair)
        assert carrier(lab, lab.links[0]) == ["UP", "UP"]
        lab.links[0].restore()
        assert pair[1].recv(1) == b"y"


def test_the_rate_of_a_link_changes_while_traffic_flows() -> None:
    with open_lab([Line(100 * MIB)]) as lab, connected(lab, lab.links[0]) as pair:
        link = lab.links[0]
        for rate in (MIB, 0, 0, 2 * MIB):
            link.slow(rate)
            arrives(pair)
            for host in lab.hosts:
                with host.netlink() as ip:
                    kinds = [qdisc.get_attr("TCA_KIND") for qdisc in ip.get_qdiscs(index_of(ip, link.card))]
                assert ("tbf" in kinds) is bool(rate)
            assert link.line.rate_bytes_per_s == rate


def test_a_slow_link_is_slow() -> None:
    with open_lab([Line(MIB)]) as lab, connected(lab, lab.links[0]) as pair:
        began = time.monotonic()
        sender = threading.Thread(target=pair[0].sendall, args=(bytes(MIB),))
        sender.start()
        left = MIB
        while left:
            left -= len(pair[1].recv(left))
        sender.join()
        burst_s = netlab.BURST_BYTES / MIB
        assert time.monotonic() - began >= 1 - burst_s - 0.05


def test_a_delay_applies_to_both_directions() -> None:
    with open_lab([Line(0, 20 * NS_PER_MS)]) as lab, connected(lab, lab.links[0]) as pair:
        began = time.monotonic()
        arrives(pair)
        arrives((pair[1], pair[0]))
        assert time.monotonic() - began >= 0.04
        lab.links[0].blackhole()
        vanishes(pair)
        lab.links[0].restore()
        assert pair[1].recv(1) == b"y"


def test_labs_side_by_side_do_not_meet() -> None:
    with open_lab([Line()]) as first, open_lab([Line()]) as second:
        host = first.hosts[1]
        with host.entered():
            server = socket.create_server((first.links[0].address(host), 4600))
        with server, second.hosts[0].entered(), pytest.raises(ConnectionRefusedError):
            socket.create_connection((second.links[0].address(second.hosts[1]), 4600), 10)


def test_a_command_runs_in_its_host() -> None:
    with open_lab([Line()]) as lab:
        argv = lab.hosts[1].command("ip", "-brief", "address", "show", lab.links[0].card)
        assert "10.99.0.2/24" in subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def test_lines_and_commands_that_are_none_are_refused() -> None:
    assert parse_line("1Gbit") == Line(125_000_000)
    assert parse_line("0,20ms") == Line(0, 20 * NS_PER_MS)
    with open_lab([Line()]) as lab:
        for text in ("", "cut", "cut x", "cut 1", "slow 0", "slow 0 fast", "cut 0 1Mbit", "break 0"):
            with pytest.raises(UsageError):
                obey(lab, text)
        for text in ("cut 0", "blackhole 0", "restore 0", "slow 0 10Mbit"):
            obey(lab, text)
        assert "10 Mbit/s: a 10.99.0.1, b 10.99.0.2" in describe(lab)


@pytest.mark.parametrize("end", ["input", "kill", "interrupt"])
def test_the_command_obeys_and_leaves_nothing(end: str) -> None:
    argv = [sys.executable, "-m", "tools.netlab", "--link", "10Mbit,5ms"]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as lab:
        assert lab.stdin is not None
        assert lab.stdout is not None
        lines = [lab.stdout.readline() for _ in range(4)]
        enter = lines[0].split(": ")[1].split()[:-1]
        relays = psutil.Process(lab.pid).children()
        assert len(relays) == 1
        lab.stdin.write("cut 7\ncut 0\n")
        lab.stdin.flush()
        assert "there is no link 7" in lab.stdout.readline()
        show = [*enter, "ip", "-brief", "link", "show", "link0"]
        until(lambda: " DOWN " in subprocess.run(show, capture_output=True, text=True).stdout, "the cut")
        if end == "input":
            lab.stdin.close()
        else:
            lab.send_signal(signal.SIGKILL if end == "kill" else signal.SIGINT)
    assert lab.returncode == (-signal.SIGKILL if end == "kill" else 0)
    until(lambda: not any(is_alive(relay) for relay in relays), "the end of the relay")
