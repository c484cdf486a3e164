# SPDX-License-Identifier: Apache-2.0
"""What a migration costs on given hosts, apart from the network: times of fixed steps, and of each GiB.

The defaults were measured on one virtual machine with 2 processors (AMD EPYC, Linux 6.18, Python 3.11) which ran both
sides of 231 migrations of synthetic guests of 48 to 256 MiB, over links of 200 Mbit/s to 1 Gbit/s and over loopback.
Such costs differ by host, so a file may replace them.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping

import msgspec

from parmig.errors import UsageError
from parmig.units import GIB, MIB


class CodecCosts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a codec does with the pages of a guest.

    Attributes:
        ratio: encoded bytes for each byte of a page.
        rewritten_ratio: the same for a page that was sent before.
        encode_s_per_gib: processor time of the source for a GiB of pages.
        decode_s_per_gib: processor time of the destination for a GiB of pages.
    """

    ratio: float = 1.0
    rewritten_ratio: float = 1.0
    encode_s_per_gib: float = 0.0
    decode_s_per_gib: float = 0.0


CODECS: Mapping[str, CodecCosts] = {
    "none": CodecCosts(),
    "lz4": CodecCosts(0.43, 0.43, GIB / (570 * MIB), 0.6),
    "zstd": CodecCosts(0.31, 0.31, GIB / (440 * MIB), 1.2),
    "delta": CodecCosts(0.31, 0.10, GIB / (440 * MIB), 1.2),
}
"""Rates of encoding and ratios are those of ``docs/performance.md``: the mean of sources and programs. Ratios are of
such a guest only; ``parmig predict`` measures those of the guest that it observes."""


class Costs(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a migration costs on given hosts. Times are in seconds; *per GiB* is per GiB of guest memory.

    Attributes:
        setup_s: from the begin of the command to the first page, without the workers' part. Measured: 93, 151 and
            201 ms in all for 1, 2 and 4 workers (medians).
        setup_worker_s: what each worker adds to that.
        round_s: of each round of the running guest beside its pages: starting it, and its fence. Rounds of
            fewer than 100 pages took 11.9, 10.9 and 14.2 ms for 1, 2 and 4 workers (medians of 37).
        count_s: between the end of a round and the begin of the next: the count of dirty pages. A migration takes 4 ms
            longer for each further round than its rounds do.
        scan_s_per_gib: of one worker in the dirty log, for clean memory. 0.9 ms for a GiB
            (``docs/performance.md``).
        read_s_per_gib: to look whether a page is zero, for pages that are. 10 GB/s by ``numpy.any`` of 4 KiB pages.
        pause_s: of the pause beside its pages: pause, scan, state, hand-over. 25 ms on the lab's busy machine (median
            of 231; 16 to 47 from the 10th to the 90th percentile).
        end_s: from the news that the guest runs at the destination to the end of the command, and all other time that
            belongs to no round and not to the pause. Measured: 36, 62 and 86 ms for 1, 2 and 4 workers (medians),
            including what ``end_worker_s`` is.
        end_worker_s: what each worker adds to that.
        source_s_per_gib: processor time of the send workers for a GiB of data pages: 0.55 s with ``tcp``
            (``docs/performance.md``, the page path alone).
        destination_s_per_gib: the same of the receive workers, into free memory that is at hand: 1.05 s.
        cold_s_per_gib: what the receive workers' first touch adds where the host below must provide the memory anew:
            two pairs of processes on 2 processors moved 442 MiB/s then, and 1433 MiB/s otherwise.
        spread: how much the fixed steps of one migration differ, as the standard deviation of their logarithm. By the
            10th and 90th percentiles of the pause (16 and 47 ms) and of the set-up with 2 workers (86 and 254 ms).
        codecs: by the name of the choice of ``--compress``.
    """

    setup_s: float = 0.060
    setup_worker_s: float = 0.036
    round_s: float = 0.011
    count_s: float = 0.004
    scan_s_per_gib: float = 0.001
    read_s_per_gib: float = 0.11
    pause_s: float = 0.024
    end_s: float = 0.020
    end_worker_s: float = 0.017
    source_s_per_gib: float = 0.55
    destination_s_per_gib: float = 1.05
    cold_s_per_gib: float = 3.0
    spread: float = 0.42
    codecs: dict[str, CodecCosts] = msgspec.field(default_factory=lambda: dict(CODECS))

    def codec(self, name: str) -> CodecCosts:
        """The costs of a choice of ``--compress``.

        Raises:
            UsageError: they are not known; the message names those that are.
        """
        try:
            return self.codecs[name]
        except KeyError:
            raise UsageError(
                f"the costs of codec {name!r} are not known, expected one of {', '.join(sorted(self.codecs))}; "
                "measure it, and add it to the file of --costs"
            ) from None

    def scattered(self, setup: float, pause: float, end: float) -> Costs:
        """The costs of one migration, whose fixed steps are so many standard deviations off."""
        factors = [math.exp(self.spread * deviation) for deviation in (setup, pause, end)]
        return msgspec.structs.replace(
            self,
            setup_s=self.setup_s * factors[0],
            setup_worker_s=self.setup_worker_s * factors[0],
            pause_s=self.pause_s * factors[1],
            end_s=self.end_s * factors[2],
            end_worker_s=self.end_worker_s * factors[2],
        )

    def encode(self) -> bytes:
        """These costs as a TOML file, which :func:`read_costs` reads."""
        lines = [f"{key} = {value!r}" for key, value in _numbers(self).items()]
        for name, codec in self.codecs.items():
            lines += ["", f"[codecs.{name}]", *(f"{key} = {value!r}" for key, value in _numbers(codec).items())]
        return "\n".join([*lines, ""]).encode()


def read_costs(data: bytes, name: str) -> Costs:
    """The costs in *data*, the content of the TOML file *name*. What it leaves out has its default.

    Raises:
        UsageError: it is not such a file; the message names the key.
    """
    try:
        costs = msgspec.convert(tomllib.loads(data.decode()), Costs)
    except (msgspec.MsgspecError, ValueError) as error:
        raise UsageError(f"{name}: {error}; expected costs as parmig simulate --calibrate writes them") from error
    values = [*_numbers(costs).items()]
    values += [(f"codecs.{codec}.{key}", v) for codec, c in costs.codecs.items() for key, v in _numbers(c).items()]
    for key, value in values:
        if not (math.isfinite(value) and value >= 0):
            raise UsageError(f"{name}: {key} is {value}, expected a number of 0 or more")
    return msgspec.structs.replace(costs, codecs={**CODECS, **costs.codecs})


def _numbers(struct: msgspec.Struct) -> dict[str, float]:
    return {key: value for key, value in msgspec.structs.asdict(struct).items() if isinstance(value, (int, float))}
