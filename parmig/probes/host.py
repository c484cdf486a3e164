# SPDX-License-Identifier: Apache-2.0
"""What this host offers besides write tracking: programs, memory, processors, limits, networks."""

from __future__ import annotations

import os
import re
import resource
import shutil
import socket
import subprocess
import sys

import psutil

from parmig.linux import syscalls
from parmig.probes.probe import COMMAND_LIMIT_S, Probe, read, trial_memory
from parmig.units import GIB, KIB, format_size

QEMU = "qemu-system-x86_64"

FEW_FILES = 4096
"""Below this many open files a migration with many workers may run out: each has a few sockets and pipes."""


def probe_system() -> Probe:
    """The versions of Linux and Python."""
    versions = f"Linux {os.uname().release} on {syscalls.MACHINE}, Python {sys.version.split()[0]}"
    if not sys.platform.startswith("linux"):
        return Probe("system", "missing", sys.platform, "parmig needs Linux", needed=True)
    return Probe("system", "ok", versions, needed=True)


def probe_libzmq() -> Probe:
    """The library that carries the pages, and whether it was built with CURVE."""
    try:
        import zmq
    except ImportError as error:
        return Probe("libzmq", "missing", str(error), "pip install pyzmq", needed=True)
    versions = f"libzmq {zmq.zmq_version()}, pyzmq {zmq.pyzmq_version()}"
    if zmq.has("curve"):
        return Probe("libzmq", "ok", f"{versions}, with CURVE", needed=True)
    return Probe(
        "libzmq", "limited", f"{versions}, without CURVE", "install a pyzmq wheel to have encryption", needed=True
    )


def probe_shared_memory() -> Probe:
    """memfd_create and shared mappings: for the workers' counters, and for guest memory in shared files."""
    try:
        with trial_memory():
            pass
    except OSError as error:
        return Probe("shared memory", "missing", f"memfd_create: {error.strerror}", "allow memfd_create", needed=True)
    return Probe("shared memory", "ok", "memfd_create and shared mappings work", needed=True)


def probe_kvm() -> Probe:
    """/dev/kvm, for guests that are not emulated."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return Probe("KVM", "limited", "no /dev/kvm", "load the kvm module; QEMU runs without it, by emulation")
    except OSError as error:
        return Probe("KVM", "limited", f"/dev/kvm: {error.strerror}", "add this user to the group kvm")
    return Probe("KVM", "ok", "/dev/kvm can be opened for reading and writing")


def probe_qemu() -> Probe:
    """QEMU for this machine's architecture, and its version."""
    path = shutil.which(QEMU)
    if path is None:
        return Probe(
            "QEMU", "limited", f"{QEMU} is not installed", "Debian and Ubuntu: apt-get install qemu-system-x86"
        )
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=COMMAND_LIMIT_S, check=True)
    return Probe("QEMU", "ok", f"{path}: {done.stdout.splitlines()[0]}")


def probe_hugetlb() -> Probe:
    """The pool of huge pages that a guest's memory can be taken from."""
    fields = dict(re.findall(r"^(HugePages_Total|HugePages_Free|Hugepagesize):\s+(\d+)", read("/proc/meminfo"), re.M))
    size = format_size(int(fields.get("Hugepagesize", 0)) * KIB)
    total, free = int(fields.get("HugePages_Total", 0)), int(fields.get("HugePages_Free", 0))
    if total == 0:
        advice = "set vm.nr_hugepages: memory at the destination is filled much faster in huge pages"
        return Probe("hugetlb pool", "limited", f"no pages of {size} reserved", advice)
    return Probe("hugetlb pool", "ok", f"{free} of {total} pages of {size} free")


def probe_shm_space() -> Probe:
    """/dev/shm, where the memory files of guests with shared memory usually are."""
    try:
        free = shutil.disk_usage("/dev/shm").free
    except FileNotFoundError:
        return Probe("/dev/shm", "limited", "not there", "mount a tmpfs on it, or let no guest have its memory there")
    detail = f"{format_size(free)} free"
    if free < GIB:
        return Probe("/dev/shm", "limited", detail, "mount -o remount,size=SIZE /dev/shm (containers: --shm-size)")
    return Probe("/dev/shm", "ok", detail)


def probe_cpus() -> Probe:
    """Processors that this process may use; workers share them with the guest."""
    usable = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    detail = f"{usable} usable of {os.cpu_count()}, load {load:.1f}"
    if usable == 1:
        return Probe("processors", "limited", detail, "one processor: workers and guest take turns")
    return Probe("processors", "ok", detail)


def probe_locked_memory() -> Probe:
    """The limit of locked memory. parmig locks none; zero-copy sending would."""
    soft, hard = (_limit(value) for value in resource.getrlimit(resource.RLIMIT_MEMLOCK))
    return Probe("locked memory", "ok", f"soft limit {soft}, hard limit {hard}")


def _limit(value: int) -> str:
    return "none" if value == resource.RLIM_INFINITY else format_size(value)


def probe_open_files() -> Probe:
    """The limit of open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    detail = f"soft limit {soft}, hard limit {hard}"
    if soft < FEW_FILES:
        return Probe("open files", "limited", detail, f"ulimit -n {FEW_FILES} before a migration with many workers")
    return Probe("open files", "ok", detail)


def probe_lz4() -> Probe:
    """The fast codec."""
    try:
        import lz4
    except ImportError as error:
        return Probe("lz4", "limited", str(error), "pip install lz4, or migrate with --compress none")
    return Probe("lz4", "ok", f"lz4 {lz4.library_version_string()}")


def probe_zstd() -> Probe:
    """The codec for slow links."""
    try:
        import zstandard
    except ImportError as error:
        return Probe("zstd", "limited", str(error), "pip install zstandard, or migrate with --compress none or lz4")
    return Probe("zstd", "ok", f"zstd {'.'.join(map(str, zstandard.ZSTD_VERSION))}")


def probe_networks() -> list[Probe]:
    """A probe for each network interface: its speed as the driver reports it, and its addresses."""
    addresses = psutil.net_if_addrs()
    probes = []
    for name, stats in sorted(psutil.net_if_stats().items()):
        own = [a.address for a in addresses.get(name, ()) if a.family in (socket.AF_INET, socket.AF_INET6)]
        speed = f"{stats.speed} Mb/s" if stats.speed else "speed unknown"
        detail = f"{speed}, MTU {stats.mtu}, {', '.join(own) or 'no address'}"
        if stats.isup and own:
            probes.append(Probe(f"network {name}", "ok", detail))
        else:
            probes.append(Probe(f"network {name}", "limited", f"{detail}{'' if stats.isup else ', down'}"))
    return probes
