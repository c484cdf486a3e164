# SPDX-License-Identifier: Apache-2.0
"""Values of options that are neither numbers nor choices: addresses, ports, files, processors."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence

import msgspec

from parmig.errors import UsageError
from parmig.options import Unit, option
from parmig.units import format_cpus, parse_cpus, parse_rate, write_size

AUTO = "auto"
"""Instead of addresses: parmig finds them."""


class Path(msgspec.Struct, frozen=True):
    """A pair of addresses that channels may use; ``local`` is empty where the kernel may choose.

    Attributes:
        rate_bytes_per_s: the limit of all workers on this path together; 0: none.
    """

    remote: str
    local: str = ""
    rate_bytes_per_s: int = 0

    @property
    def addresses(self) -> str:
        """Only the addresses, as text."""
        return f"{self.local}-{self.remote}" if self.local else self.remote

    def __str__(self) -> str:
        return self.addresses + (f"@{write_size(self.rate_bytes_per_s)}/s" if self.rate_bytes_per_s else "")


AUTO_PATH = Path(AUTO)


def parse_path(text: str) -> Path:
    """``LOCAL-REMOTE`` or ``REMOTE``, IPv4 addresses or names without a hyphen, IPv6 in brackets; or ``auto``.

    ``@RATE`` may follow the addresses.

    Raises:
        UsageError: none of these.
    """
    addresses, at, rate = text.partition("@")
    parts = re.fullmatch(r"(?:(\[[0-9a-fA-F:]+\]|[^\s\-\[\]]+)-)?(\[[0-9a-fA-F:]+\]|[^\s\-\[\]]+)", addresses)
    if parts is None or (at and addresses == AUTO):
        raise UsageError(f"{text!r} is not a path; write LOCAL-REMOTE, like 10.0.0.1-10.0.0.2, with @RATE or without")
    return Path(local=parts[1] or "", remote=parts[2], rate_bytes_per_s=parse_rate(rate) if at else 0)


FINGERPRINT_PREFIX = "sha256:"

_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?", re.I)


def plain_name(name: str) -> str:
    """A host name or an address in the one way in which it is compared; empty: it is neither."""
    try:
        return str(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        return name.lower().rstrip(".") if _NAME.fullmatch(name) and len(name) < 254 else ""


def parse_peer(text: str) -> str:
    """The peer that a user means by *text*, in the one way in which it is compared.

    Args:
        text: a host name, an address, or ``sha256:`` and 64 hexadecimal digits, with colons between them or without.

    Raises:
        UsageError: it is none of these.
    """
    if text.startswith(FINGERPRINT_PREFIX):
        digits = text.removeprefix(FINGERPRINT_PREFIX).replace(":", "").lower()
        if not re.fullmatch(r"[0-9a-f]{64}", digits):
            raise UsageError(f"{text!r} is not a fingerprint; write sha256: and 64 hexadecimal digits")
        return FINGERPRINT_PREFIX + digits
    name = plain_name(text)
    if not name:
        raise UsageError(f"{text!r} is not a peer; write a host name, an address, or sha256:FINGERPRINT")
    return name


def parse_host(text: str) -> tuple[str, ...]:
    """The names and addresses of one host, ``NAME[,ADDRESS...]``.

    Raises:
        UsageError: one of them is neither a host name nor an address.
    """
    names = tuple(plain_name(part) for part in text.split(","))
    if not all(names):
        raise UsageError(f"{text!r} is not a host; write its name and addresses, like a.example.net,192.0.2.1")
    return names


def check_keys(config: object) -> None:
    """Raise :class:`UsageError` if those options of *config* contradict each other that concern keys."""
    keys = getattr(config, "keys", "")
    if getattr(config, "peers", ()) and not keys:
        raise UsageError("--peer names certificates, and without --keys nobody shows one; give --keys DIR as well")
    if getattr(config, "insecure", False) and keys:
        raise UsageError("--insecure is for listening without keys; leave out --insecure, or --keys")


def check_cpus(text: str) -> None:
    """Raise :class:`UsageError` unless this process may use all the processors of the list *text*."""
    allowed = os.sched_getaffinity(0)
    denied = set(parse_cpus(text)) - allowed if text else ()
    if denied:
        raise UsageError(
            f"--cpus has {format_cpus(denied)}, but parmig may use {format_cpus(allowed)} only; name some of these"
        )


def check_paths(paths: Sequence[Path], workers: int) -> None:
    """Raise :class:`UsageError` unless *paths* can be used by so many workers."""
    if AUTO_PATH in paths and len(paths) > 1:
        raise UsageError("--path auto finds all paths; leave out the others, or name all of them without auto")
    if len(paths) > workers:
        raise UsageError(
            f"{len(paths)} paths need a worker each, but --workers is {workers}; "
            f"give --workers {len(paths)} or more, or fewer paths"
        )


def _read_ports(text: str) -> tuple[int, int]:
    first, separator, last = text.partition("-")
    if not (separator and first.isdecimal() and last.isdecimal()):
        raise UsageError(f"{text!r} is not a range of ports; write FIRST-LAST, like 4700-4731")
    if not 1 <= int(first) <= int(last) <= 65535:
        raise UsageError(f"{text!r} is not a range of ports; write two ports from 1 to 65535, the lower one first")
    return int(first), int(last)


def _read_address_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise UsageError(f"{text!r} is not an address and a port; write it like 127.0.0.1:9470")
    return host.strip("[]"), int(port)


def _read_file(text: str) -> str:
    if not os.path.isfile(text):
        raise UsageError(f"there is no file {text!r}; give the path of an existing file")
    return text


def _read_cpus(text: str) -> str:
    parse_cpus(text)
    return text


PATH_PAIR = Unit("LOCAL-REMOTE[@RATE]", "a pair of addresses", parse_path)
PORTS = Unit("FIRST-LAST", "a range of ports", _read_ports)
ADDRESS_PORT = Unit("ADDRESS:PORT", "an address and a port", _read_address_port, lambda pair: f"{pair[0]}:{pair[1]}")
FILE = Unit("FILE", "a file", _read_file)
STATE_DIR = option(
    "Directory for the record of the hand-over; see recover.md.",
    metavar="DIR",
    shown="$PARMIG_STATE_DIR; else /var/lib/parmig, or ~/.local/state/parmig for a user who is not root",
)
"""The same for every command that writes or reads records."""

KEYS = option(
    "Directory of keys and certificates. With it, both hosts show who they are, and everything is encrypted. See "
    "security.md.",
    metavar="DIR",
    shown="none",
)
"""The same for every command that talks to another host."""

PEER = Unit("NAME|sha256:FINGERPRINT", "a peer", parse_peer)
RECEIVERS = option(
    "Go on only if the receiver's certificate has this name or fingerprint; repeat the option for more.",
    PEER,
    name="peer",
    shown="the host of URI",
)
SENDERS = option(
    "Let in only senders whose certificate has this name or fingerprint; repeat the option for more.",
    PEER,
    name="peer",
    shown="all of the authority",
)
HOST = Unit("NAME[,ADDRESS...]", "a host", parse_host)

CPUS = Unit("LIST", "a list of processors", _read_cpus)

CANCEL, PAUSE = "cancel", "pause"
ON_TIMEOUT = option(
    "When --timeout is over: cancel, or pause the guest after this round, however long the pause will be.",
    choices=(CANCEL, PAUSE),
)
AUTO, PREDICTED, MANUAL = "auto", "predicted", "manual"
SWITCHOVER = option(
    "When the guest is paused. auto: as soon as the pause is short enough. predicted: once it is short enough, and no "
    "further round is expected to make it shorter. manual: once parmig set --switchover now says so.",
    choices=(AUTO, PREDICTED, MANUAL),
)
"""The same for a migration and a snapshot."""

BEFORE_PAUSE_PROGRAM = option(
    "Run PROGRAM before the guest is paused; if it fails, cancel.", metavar="PROGRAM", shown="none"
)
BEFORE_HAND_OVER_PROGRAM = option(
    "Run PROGRAM when the destination is ready, before the hand-over; if it fails, cancel. The guest is paused then.",
    metavar="PROGRAM",
    shown="none",
)
AFTER_END_PROGRAM = option("Run PROGRAM after the end, however it ended.", metavar="PROGRAM", shown="none")
