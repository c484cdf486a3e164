# SPDX-License-Identifier: Apache-2.0
"""A network lab on one machine, by hand (:mod:`parmig.experiments.netlab`). It needs root.

usage: python -m tools.netlab --link RATE[,DELAY] [--link ...] [--hosts 2]
"""

from __future__ import annotations

import argparse
import contextlib
import sys

from parmig.errors import UsageError
from parmig.experiments.netlab import Lab, Line, open_lab
from parmig.units import NS_PER_MS, format_bit_rate, parse_duration_ns, parse_rate

COMMANDS = ("cut", "blackhole", "restore", "slow")


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
