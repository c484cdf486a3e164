# SPDX-License-Identifier: Apache-2.0
"""A host of the network lab: a network namespace, what runs in it, and its network cards."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from pyroute2 import IPRoute

from parmig.linux import namespaces


class Host:
    """A network namespace of its own, with a loopback device.

    Attributes:
        name: a letter.
        fd: of the namespace; it exists as long as this is open, or a process is in it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.fd = namespaces.new_network()
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
        with namespaces.entered(self.fd):
            yield

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


def index_of(ip: IPRoute, name: str) -> int:
    """The number of the network card *name*."""
    return int(ip.link_lookup(ifname=name)[0])


def set_card(ip: IPRoute, name: str, **what: Any) -> None:
    """Change the network card *name*, as :meth:`IPRoute.link` takes it."""
    ip.link("set", index=index_of(ip, name), **what)
