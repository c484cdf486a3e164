# SPDX-License-Identifier: Apache-2.0
"""What encryption costs: a synthetic guest at rest moves over loopback, with keys and without in turns.

Each side has a core of its own, as two hosts would.

usage: python -m tools.bench_tls [--runs 5] [--mib 2048]

For each number of workers: MiB/s of round 1. ``of_bound`` compares with AES alone: each side has to encrypt or decrypt
every byte on its core, as fast as ``openssl speed`` does it with the same cipher. 1 would mean that nothing was added.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import msgspec

from parmig.engine.reporting.report import Report
from parmig.experiments.sides import two_sides
from parmig.transport.security.fleet import add_hosts
from parmig.units import MIB
from tools.bench_lab import median, run_benches

WORKERS = (1, 2)

_SPEEDS = {"TLS_AES_128_GCM_SHA256": "aes-128-gcm", "TLS_AES_256_GCM_SHA384": "aes-256-gcm"}


def move(memory_mib: int, workers: int, keys: Sequence[str]) -> Report:
    """The report of one migration."""
    guest = f"synthetic:memory={memory_mib}MiB,rate=0"
    parmig = [sys.executable, "-m", "parmig"]
    receive = [*parmig, "receive", "--listen", "tcp://127.0.0.1:0", "--guest", guest, "--json", *keys]
    with two_sides(pinned=True) as sides:
        with sides.destination.entered():
            receiver = subprocess.Popen(receive, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        with receiver:
            assert receiver.stderr is not None
            uri = next(line.split()[-1] for line in receiver.stderr if "listening on" in line)
            send = [*parmig, "send", uri, "--guest", guest, "--workers", str(workers), "--json", "--quiet", *keys]
            with sides.source.entered():
                output = subprocess.run(send, stdout=subprocess.PIPE, check=True).stdout
            receiver.communicate(timeout=60)
        return msgspec.json.decode(output, type=Report)


def openssl_bytes_per_s(cipher: str) -> float:
    """What ``openssl speed`` measures in pieces of 16 KiB, the size of a record of TLS."""
    command = ["openssl", "speed", "-seconds", "1", "-bytes", "16384", "-evp", cipher]
    last = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    return float(re.findall(r"([\d.]+)k", last)[-1]) * 1000


def bench_tls(runs: int, mib: int) -> dict[str, Any]:
    """The figures for each number of workers, as medians."""
    with tempfile.TemporaryDirectory() as fleet:
        (directory,) = add_hosts(fleet, [("localhost", "127.0.0.1")], 30)
        return {f"workers {workers}": _bench(runs, mib, workers, ["--keys", directory]) for workers in WORKERS}


def _bench(runs: int, mib: int, workers: int, with_keys: list[str]) -> dict[str, Any]:
    rates: dict[bool, list[float]] = {False: [], True: []}
    cipher = ""
    for _ in range(runs):
        for secured in (False, True):
            report = move(mib, workers, with_keys if secured else [])
            rates[secured].append(report.throughput_mib_per_s)
            cipher = report.encryption.cipher if report.encryption is not None else cipher
    plain, tls = median(rates[False]), median(rates[True])
    aes = openssl_bytes_per_s(_SPEEDS[cipher]) / MIB
    bound = 1 / (1 / plain + 1 / aes)
    return {
        "cipher": cipher,
        "mib_per_s": round(plain),
        "mib_per_s_with_keys": round(tls),
        "of_plain": round(tls / plain, 2),
        "aes_mib_per_s": round(aes),
        "of_bound": round(tls / bound, 2),
    }


if __name__ == "__main__":
    run_benches(__doc__, {"tls": bench_tls}, runs=5, mib=2048)
