# SPDX-License-Identifier: Apache-2.0
"""What this host can do, found by trying it.

Each probe tests one thing and leaves nothing behind. It answers even if the thing cannot be tested. Numbers of the
kernel come from :mod:`parmig.linux`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable

from parmig.probes import host, huge, kernel_tls, kvm, rights, tracking
from parmig.probes.probe import Probe, Status

__all__ = ["Probe", "Status", "migration_possible", "probe_host"]

_PROBES: tuple[tuple[str, Callable[[], Probe]], ...] = (
    ("system", host.probe_system),
    ("libzmq", host.probe_libzmq),
    ("shared memory", host.probe_shared_memory),
    ("userfaultfd", tracking.probe_userfaultfd),
    ("WP_ASYNC", tracking.probe_write_protection),
    ("PAGEMAP_SCAN", tracking.probe_pagemap_scan),
    ("ptrace", tracking.probe_ptrace),
    ("KVM", host.probe_kvm),
    ("KVM guest", kvm.probe_kvm_guest),
    ("KVM dirty log", kvm.probe_kvm_dirty_log),
    ("QEMU", host.probe_qemu),
    ("hugetlb pool", host.probe_hugetlb),
    ("shmem huge pages", huge.probe_shmem_huge),
    ("/dev/shm", host.probe_shm_space),
    ("processors", host.probe_cpus),
    ("locked memory", host.probe_locked_memory),
    ("open files", host.probe_open_files),
    ("kernel TLS", kernel_tls.probe_kernel_tls),
    ("lz4", host.probe_lz4),
    ("zstd", host.probe_zstd),
)


def probe_host() -> list[Probe]:
    """All probes, in the order in which they are shown."""
    single = [guarded(name, probe) for name, probe in (*_PROBES, *rights.PROBES)]
    return single + host.probe_networks()


def migration_possible(probes: list[Probe]) -> bool:
    """Whether a migration is possible at all on a host with these *probes*."""
    return not any(probe.needed and probe.status == "missing" for probe in probes)


def guarded(name: str, probe: Callable[[], Probe]) -> Probe:
    """The result of *probe*. If the probe itself fails, the result reports that, as *name*."""
    try:
        return probe()
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return Probe(name, "missing", f"cannot be looked at: {error}")
