# SPDX-License-Identifier: Apache-2.0
"""A network lab on one machine: hosts that are network namespaces, joined by links that can fail. It needs root.

Each link joins all hosts and has its own rate (tc-tbf at each network card). With a delay, a program passes the frames
on (:mod:`.netlab_relay`), since not every kernel has netem. While traffic flows, a link can be

- cut: the cards lose their carrier, as if the cable were pulled; their addresses stay,
- blackholed: the cards have a carrier, and nothing that they send arrives,
- slowed, or given another rate,
- restored: carrier and delivery are back; the rate stays as it is,
- made to damage a byte (:meth:`Link.flip`), if it has a delay.

From Python::

    with open_lab([Line(parse_rate("1Gbit")), Line(parse_rate("500Mbit"))]) as lab:
        a, b = lab.hosts
        subprocess.run(a.command("ip", "address"))
        lab.links[0].cut()

Nothing of a lab has a name outside of it, so labs run side by side. The namespaces exist as long as the process that
opened the lab and what was started in them: they are gone even if that process is killed.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from parmig.experiments.netlab_host import Host, index_of, set_card
from parmig.linux import namespaces
from parmig.units import KIB, NS_PER_MS, NS_PER_S

MTU_BYTES, DELAYED_MTU_BYTES = 1500, 9000
"""A link with a delay has the larger one: a program handles each frame, and reaches some 2 Gbit/s."""

BURST_BYTES = 256 * KIB
"""What a card may send at once. Segments that the card would cut (64 KiB) fit into it."""

QUEUE_NS = 50 * NS_PER_MS
"""How long a card queues what it cannot send yet."""

UP_LIMIT_S = 10.0
"""How long a link may take to come up. It takes up to a second on an idle machine."""


@dataclass(frozen=True)
class Line:
    """What a link is like.

    Attributes:
        rate_bytes_per_s: of each card, in each direction; 0: no limit.
        delay_ns: of each frame, in each direction.
    """

    rate_bytes_per_s: int = 0
    delay_ns: int = 0


class Link:
    """A network that joins all hosts. :func:`open_lab` makes it.

    Args:
        number: from 0 on. Its card is ``linkNUMBER`` in each host, with the address ``10.99.NUMBER.HOST+1/24``.
        line: what it is like.
        hosts: to join.
        switch: where the other ends of their cards are.

    Attributes:
        line: as above; :meth:`slow` changes the rate.
    """

    def __init__(self, number: int, line: Line, hosts: Sequence[Host], switch: Host) -> None:
        self.number = number
        self.line = line
        self.card = f"link{number}"
        self._hosts, self._switch = hosts, switch
        self._ports = [f"l{number}h{host}" for host in range(len(hosts))]
        self._relay: subprocess.Popen[bytes] | None = None
        with switch.netlink() as ip:
            mtu = DELAYED_MTU_BYTES if line.delay_ns else MTU_BYTES
            for port, host in zip(self._ports, hosts, strict=True):
                peer = {"ifname": self.card, "net_ns_fd": host.fd, "mtu": mtu}
                ip.link("add", ifname=port, kind="veth", peer=peer, mtu=mtu)
            if line.delay_ns:
                self._bridges = [f"d{number}h{host}" for host in range(len(hosts))]
                taps = self._start_relay(line.delay_ns)
            else:
                self._bridges, taps = [f"b{number}"] * len(hosts), []
            for bridge in dict.fromkeys(self._bridges):
                ip.link("add", ifname=bridge, kind="bridge", mtu=mtu)
                ip.link("set", ifname=bridge, state="up")
            for tap, bridge in zip(taps, self._bridges, strict=False):
                set_card(ip, tap, master=index_of(ip, bridge), mtu=mtu, state="up")
        self._configure_cards()
        self._join()
        self.slow(line.rate_bytes_per_s)

    def address(self, host: Host) -> str:
        """The address of *host* on this link."""
        return f"10.99.{self.number}.{self._hosts.index(host) + 1}"

    def _configure_cards(self) -> None:
        """Give every card its address. The others are known without asking, so a blackhole swallows no question."""
        cards = []
        for host in self._hosts:
            with host.netlink() as ip:
                set_card(ip, self.card, state="up")
                ip.addr("add", index=index_of(ip, self.card), address=self.address(host), prefixlen=24)
                cards.append(ip.link("get", ifname=self.card)[0].get_attr("IFLA_ADDRESS"))
        for host in self._hosts:
            with host.netlink() as ip:
                for other, card in zip(self._hosts, cards, strict=True):
                    if other is not host:
                        ip.neigh(
                            "add", dst=self.address(other), lladdr=card, ifindex=index_of(ip, self.card), state=0x80
                        )

    def _start_relay(self, delay_ns: int) -> list[str]:
        """Start the program that passes frames on; returns its devices in the switch, one a host."""
        names = [f"t{self.number}h{host}" for host in range(len(self._hosts))]
        with contextlib.ExitStack() as opened:
            taps = []
            for name in names:
                taps.append(namespaces.open_tap(name))
                opened.callback(os.close, taps[-1])
            argv = [sys.executable, "-m", "parmig.experiments.netlab_relay", str(delay_ns), *map(str, taps)]
            pipe = subprocess.PIPE
            self._relay = subprocess.Popen(argv, stdin=pipe, stdout=pipe, pass_fds=taps, bufsize=0)
        return names

    # -- while traffic flows --------------------------------------------------------------------

    def cut(self) -> None:
        """Take the carrier away from all cards of this link."""
        with self._switch.netlink() as ip:
            for port in self._ports:
                set_card(ip, port, state="down")

    def blackhole(self) -> None:
        """Accept all frames and deliver none."""
        with self._switch.netlink() as ip:
            for port in self._ports:
                set_card(ip, port, state="up", master=0)

    def restore(self) -> None:
        """Undo :meth:`cut` and :meth:`blackhole`; returns when the link delivers again."""
        self._join()
        self.wait_until_up()

    def _join(self) -> None:
        with self._switch.netlink() as ip:
            for port, bridge in zip(self._ports, self._bridges, strict=True):
                set_card(ip, port, state="up", master=index_of(ip, bridge))

    def wait_until_up(self) -> None:
        """Wait until the kernel has noticed the carrier everywhere, which may take it a second (net/core/link_watch.c).

        Raises:
            TimeoutError: it has not.
        """
        places = [(host, [self.card]) for host in self._hosts] + [(self._switch, self._ports)]
        deadline = time.monotonic() + UP_LIMIT_S
        for host, names in places:
            with host.netlink() as ip:
                while any(ip.link("get", ifname=name)[0].get_attr("IFLA_OPERSTATE") != "UP" for name in names):
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"link {self.number} was not up in {host.name} after {UP_LIMIT_S:g} s")
                    time.sleep(0.005)

    def slow(self, rate_bytes_per_s: int) -> None:
        """Let every card send at this rate from now on; 0: no limit."""
        self.line = Line(rate_bytes_per_s, self.line.delay_ns)
        for host in self._hosts:
            with host.netlink() as ip:
                card = index_of(ip, self.card)
                if rate_bytes_per_s:
                    queue_bytes = BURST_BYTES + rate_bytes_per_s * QUEUE_NS // NS_PER_S
                    shape = {"rate": rate_bytes_per_s, "burst": BURST_BYTES, "limit": queue_bytes}
                    ip.tc("replace", "tbf", card, 0x10000, **shape)
                else:
                    with contextlib.suppress(Exception):  # netlink's own kind: there was no limit
                        ip.tc("del", index=card, root=True)

    def flip(self, port: int, draw: float) -> None:
        """Change one byte of what is sent next from or to TCP *port*. The link must have a delay.

        Args:
            draw: a number below 1 that chooses the byte.
        """
        assert self._relay is not None, "nobody passes the frames on"
        assert self._relay.stdin is not None
        self._relay.stdin.write(f"flip {port} {draw}\n".encode())
        self._relay.stdin.flush()

    def flipped(self) -> list[int]:
        """The ports whose bytes were changed since the last call."""
        assert self._relay is not None, "nobody passes the frames on"
        assert self._relay.stdout is not None
        os.set_blocking(self._relay.stdout.fileno(), False)
        return [int(port) for port in (self._relay.stdout.read() or b"").split()]

    def close(self) -> None:
        """End the relay."""
        if self._relay is not None:
            for pipe in (self._relay.stdin, self._relay.stdout):
                assert pipe is not None
                pipe.close()
            self._relay.wait()


class Lab:
    """Hosts and links; :func:`open_lab` makes it."""

    def __init__(self, opened: contextlib.ExitStack, lines: Sequence[Line], hosts: int) -> None:
        self.hosts: list[Host] = []
        self.links: list[Link] = []
        for number in range(hosts):
            self.hosts.append(Host(chr(ord("a") + number)))
            opened.callback(self.hosts[-1].close)
        switch = Host("switch")
        opened.callback(switch.close)
        for number, line in enumerate(lines):
            self.links.append(Link(number, line, self.hosts, switch))
            opened.callback(self.links[-1].close)
        for link in self.links:
            link.wait_until_up()


@contextlib.contextmanager
def open_lab(lines: Sequence[Line], *, hosts: int = 2) -> Iterator[Lab]:
    """A lab with a link for each of *lines* (at most 255) between *hosts* hosts (at most 26).

    Raises:
        PermissionError: this process may not make network namespaces; root may.
    """
    with contextlib.ExitStack() as opened:
        yield Lab(opened, lines, hosts)
