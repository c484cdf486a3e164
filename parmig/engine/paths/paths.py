# SPDX-License-Identifier: Apache-2.0
"""Which paths a migration uses, and which worker uses which. Pure; ``path_search`` finds the pairs that there are."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from parmig.linux.networks import DeviceAddress
from parmig.units import format_bit_rate, format_rate
from parmig.values import Path


class DevicePair(msgspec.Struct, frozen=True):
    """Two network devices that reach each other.

    Attributes:
        path: an address of each.
        devices: their numbers, at the source and at the destination.
        bytes_per_s: speed of the slower one; 0: unknown.
    """

    path: Path
    devices: tuple[int, int]
    bytes_per_s: int


def pair_up(here: DeviceAddress, there: DeviceAddress) -> DevicePair:
    """The pair of these two, of one address family."""
    speeds = [speed for speed in (here.bytes_per_s, there.bytes_per_s) if speed]
    path = Path(local=_bracketed(here.address), remote=_bracketed(there.address))
    return DevicePair(path, (here.device, there.device), min(speeds, default=0))


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def choose_pairs(pairs: Sequence[DevicePair], most: int) -> list[DevicePair]:
    """At most *most* of *pairs*, fast ones first.

    First pairs of devices that are in no other pair, so that each device is used once; then pairs with a device that is
    in none yet. More pairs would only share devices with these.
    """
    by_speed = sorted(pairs, key=lambda pair: -pair.bytes_per_s)  # stable
    chosen: list[DevicePair] = []
    for enough in (all, any):
        for pair in by_speed:
            used = [{other.devices[side] for other in chosen} for side in (0, 1)]
            if len(chosen) < most and enough(pair.devices[side] not in used[side] for side in (0, 1)):
                chosen.append(pair)
    return chosen


def spread(speeds: Sequence[int], workers: int) -> list[int]:
    """The number of the path of each worker: at least one worker a path, the others in proportion to the speeds.

    Args:
        speeds: of the paths, at most as many as *workers*; 0: unknown, which counts as the mean of the others.
    """
    known = [speed for speed in speeds if speed]
    mean = sum(known) / len(known) if known else 1.0
    weights = [speed or mean for speed in speeds]
    counts = [1] * len(weights)
    chosen = list(range(len(weights)))
    while len(chosen) < workers:
        # Whoever would have the fastest path to itself.
        path = max(range(len(weights)), key=lambda number: weights[number] / (counts[number] + 1))
        counts[path] += 1
        chosen.append(path)
    return chosen


class ChosenPaths(msgspec.Struct, frozen=True):
    """The paths of a migration.

    Attributes:
        paths: none: all workers use the address of the receiver.
        of_worker: number of the path of each worker.
    """

    paths: tuple[Path, ...] = ()
    of_worker: tuple[int, ...] = ()

    def of(self, worker: int) -> Path | None:
        """The path of *worker*; None: none was chosen."""
        return self.paths[self.of_worker[worker]] if self.paths else None

    def others(self, worker: int) -> tuple[Path, ...]:
        """The paths that *worker* does not use, from the one after its own on, so that a loss spreads its workers."""
        if not self.paths:
            return ()
        own = self.of_worker[worker]
        return self.paths[own + 1 :] + self.paths[:own]

    def describe(self, speeds: Sequence[int] = ()) -> str:
        """The choice, for people; with the speeds of the devices where they are known."""
        parts = []
        for number, path in enumerate(self.paths):
            count = self.of_worker.count(number)
            words = [f"{count} worker{'s' if count != 1 else ''}"]
            if number < len(speeds) and speeds[number]:
                words.append(format_bit_rate(speeds[number]))
            if path.rate_bytes_per_s:
                words.append(f"at most {format_rate(path.rate_bytes_per_s)}")
            parts.append(f"{path.addresses} ({', '.join(words)})")
        return f"paths: {'; '.join(parts)}"
