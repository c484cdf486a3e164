# SPDX-License-Identifier: Apache-2.0
"""A network lab on one machine: hosts that are network namespaces, joined by links that can fail. It needs root.

usage: python -m tools.netlab --link RATE[,DELAY] [--link ...] [--hosts 2]

Each link joins all hosts and has its own rate (tc-tbf at each network card). With a delay, a program passes the frames
on (:mod:`tools.netlab_relay`), since not every kernel has netem. While traffic flows, a link can be

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

import argparse
import contextlib
import ctypes
import fcntl
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pyroute2 import IPRoute, netns

from parmig.errors import UsageError
from parmig.units import KIB, NS_PER_MS, NS_PER_S, format_bit_rate, parse_duration_ns, parse_rate

MTU_BYTES, DELAYED_MTU_BYTES = 1500, 9000
"""A link with a delay has the larger one: a program handles each frame, and reaches some 2 Gbit/s."""

BURST_BYTES = 256 * KIB
"""What a card may send at once. Segments that the card would cut (64 KiB) fit into it."""

QUEUE_NS = 50 * NS_PER_MS
"""How long a card queues what it cannot send yet."""

UP_LIMIT_S = 10.0
"""How long a link may take to come up. It takes up to a second on an idle machine."""

COMMANDS = ("cut", "blackhole", "restore", "slow")

_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000  # linux/if_tun.h
_IFREQ = struct.Struct("16sH22x")


@dataclass(frozen=True)
class Line:
    """What a link is like.

    Attributes:
        rate_bytes_per_s: of each card, in each direction; 0: no limit.
        delay_ns: of each frame, in each direction.
    """

    rate_bytes_per_s: int = 0
    delay_ns: int = 0


class Host:
    """A network namespace of its own, with a loopback device.

    Attributes:
        name: a letter.
        fd: of the namespace; it exists as long as this is open, or a process is in it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.fd = _new_namespace()
        with self.netlink() as ip:
            ip.link("set", index=1, state="up")

    @property
    def path(self) -> str:
        """The namespace as a file, for ``nsenter --net=PATH``. It is valid while the lab is open."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def command(self, *argv: str) -> list[str]:
        """The command *argv*, to be run in this host by any process of root."""
        return ["nsenter", f"--net={self.path}", "--", *argv]

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Put this thread into the host: sockets that it opens and processes that it starts then belong to the host."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            netns.setns(self.fd)
            try:
                yield
            finally:
                netns.setns(before)
        finally:
            os.close(before)

    @contextlib.contextmanager
    def netlink(self) -> Iterator[IPRoute]:
        """Netlink of the host, in this thread."""
        with self.entered(), IPRoute() as ip:
            yield ip

    def processes(self) -> list[int]:
        """The ids of all processes in this host."""
        inside, number = [], os.fstat(self.fd).st_ino
        for name in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError):  # it has ended
                if os.stat(f"/proc/{name}/ns/net").st_ino == number:
                    inside.append(int(name))
        return inside

    def close(self) -> None:
        """Let the namespace go."""
        os.close(self.fd)


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
                _set(ip, tap, master=_index(ip, bridge), mtu=mtu, state="up")
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
                _set(ip, self.card, state="up")
                ip.addr("add", index=_index(ip, self.card), address=self.address(host), prefixlen=24)
                cards.append(ip.link("get", ifname=self.card)[0].get_attr("IFLA_ADDRESS"))
        for host in self._hosts:
            with host.netlink() as ip:
                for other, card in zip(self._hosts, cards, strict=True):
                    if other is not host:
                        ip.neigh("add", dst=self.address(other), lladdr=card, ifindex=_index(ip, self.card), state=0x80)

    def _start_relay(self, delay_ns: int) -> list[str]:
        """Start the program that passes frames on; returns its devices in the switch, one a host."""
        names = [f"t{self.number}h{host}" for host in range(len(self._hosts))]
        with contextlib.ExitStack() as opened:
            taps = []
            for name in names:
                taps.append(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
                opened.callback(os.close, taps[-1])
                fcntl.ioctl(taps[-1], _TUNSETIFF, _IFREQ.pack(name.encode(), _IFF_TAP | _IFF_NO_PI))
            argv = [sys.executable, "-m", "tools.netlab_relay", str(delay_ns), *map(str, taps)]
            pipe = subprocess.PIPE
            self._relay = subprocess.Popen(argv, stdin=pipe, stdout=pipe, pass_fds=taps, bufsize=0)
        return names

    # -- while traffic flows --------------------------------------------------------------------

    def cut(self) -> None:
        """Take the carrier away from all cards of this link."""
        with self._switch.netlink() as ip:
            for port in self._ports:
                _set(ip, port, state="down")

    def blackhole(self) -> None:
        """Accept all frames and deliver none."""
        with self._switch.netlink() as ip:
            for port in self._ports:
                _set(ip, port, state="up", master=0)

    def restore(self) -> None:
        """Undo :meth:`cut` and :meth:`blackhole`; returns when the link delivers again."""
        self._join()
        self.wait_until_up()

    def _join(self) -> None:
        with self._switch.netlink() as ip:
            for port, bridge in zip(self._ports, self._bridges, strict=True):
                _set(ip, port, state="up", master=_index(ip, bridge))

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
                card = _index(ip, self.card)
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


def _new_namespace() -> int:
    """A descriptor of a new network namespace; this thread stays where it is."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, f"cannot make a network namespace: {os.strerror(number)}; run it as root")
        try:
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            netns.setns(before)
    finally:
        os.close(before)


def _index(ip: IPRoute, name: str) -> int:
    return int(ip.link_lookup(ifname=name)[0])


def _set(ip: IPRoute, name: str, **what: Any) -> None:
    ip.link("set", index=_index(ip, name), **what)


# -- the command line ---------------------------------------------------------------------------


def parse_line(text: str) -> Line:
    """``RATE[,DELAY]``, like ``1Gbit`` or ``500Mbit,20ms``; a rate of 0 means no limit.

    Raises:
        UsageError: it is something else.
    """
    rate, _, delay = text.partition(",")
    return Line(parse_rate(rate), parse_duration_ns(delay) if delay else 0)


def describe(lab: Lab) -> str:
    """How to enter the hosts of *lab*, and their addresses."""
    lines = [f"host {host.name}: {' '.join(host.command('COMMAND'))}" for host in lab.hosts]
    for link in lab.links:
        rate = format_bit_rate(link.line.rate_bytes_per_s) if link.line.rate_bytes_per_s else "no limit"
        delay = f", {link.line.delay_ns / NS_PER_MS:g} ms each way" if link.line.delay_ns else ""
        addresses = ", ".join(f"{host.name} {link.address(host)}" for host in lab.hosts)
        lines.append(f"link {link.number}: {rate}{delay}: {addresses}")
    return "\n".join(lines)


def obey(lab: Lab, text: str) -> None:
    """Carry out one line of the user: ``cut LINK``, ``blackhole LINK``, ``restore LINK``, ``slow LINK RATE``.

    Raises:
        UsageError: it is none of these.
    """
    words = text.split()
    usage = f"{text!r} is not understood; write cut, blackhole or restore with the number of a link, or slow LINK RATE"
    if len(words) != 2 + (words[:1] == ["slow"]) or words[0] not in COMMANDS or not words[1].isdecimal():
        raise UsageError(usage)
    if int(words[1]) >= len(lab.links):
        raise UsageError(f"there is no link {words[1]}; the last one is {len(lab.links) - 1}")
    link = lab.links[int(words[1])]
    if words[0] == "slow":
        link.slow(parse_rate(words[2]))
    else:
        {"cut": link.cut, "blackhole": link.blackhole, "restore": link.restore}[words[0]]()


def main() -> None:
    """Open a lab, and change its links as standard input says, until that ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--link", action="append", type=parse_line, required=True, metavar="RATE[,DELAY]")
    parser.add_argument("--hosts", type=int, default=2)
    chosen = parser.parse_args()
    with open_lab(chosen.link, hosts=chosen.hosts) as lab, contextlib.suppress(KeyboardInterrupt):
        print(describe(lab), flush=True)
        print("cut LINK, blackhole LINK, restore LINK, slow LINK RATE; the lab is gone when the input ends", flush=True)
        for line in sys.stdin:
            try:
                if line.strip():
                    obey(lab, line)
            except UsageError as error:
                print(error, flush=True)


if __name__ == "__main__":
    main()
