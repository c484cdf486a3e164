# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import psutil
import pytest

from parmig import probes
from parmig.linux import huge_pages, uffd
from parmig.probes import Probe, host, huge, tracking


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_every_probe_answers_and_leaves_nothing_behind() -> None:
    probes.probe_host()
    descriptors, children = open_descriptors(), psutil.Process().children(recursive=True)
    found = probes.probe_host()
    assert open_descriptors() == descriptors
    assert psutil.Process().children(recursive=True) == children
    assert len({one.name for one in found}) == len(found)
    for one in found:
        assert one.status in ("ok", "limited", "missing")
        assert one.detail


def test_the_tests_run_where_a_migration_is_possible() -> None:
    assert probes.migration_possible(probes.probe_host())


def test_only_what_is_needed_and_missing_makes_a_migration_impossible() -> None:
    assert probes.migration_possible([Probe("a", "missing", "x"), Probe("b", "limited", "x", needed=True)])
    assert not probes.migration_possible([Probe("a", "missing", "x", needed=True)])


def test_a_probe_that_fails_is_a_finding() -> None:
    def broken() -> Probe:
        raise PermissionError(1, "not for you")

    found = probes.guarded("thing", broken)
    assert (found.name, found.status) == ("thing", "missing")
    assert "not for you" in found.detail


def test_write_tracking_is_found_to_work_exactly_where_the_kernel_has_it() -> None:
    has_it = uffd.probe_write_tracking() is None
    assert (tracking.probe_pagemap_scan().status == "ok") is has_it


def test_a_host_that_forbids_userfaultfd_is_told_what_happens_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(uffd, "create", refuse)
    for probe in (tracking.probe_userfaultfd, tracking.probe_write_protection, tracking.probe_pagemap_scan):
        found = probe()
        assert found.status == "missing"
        assert "digest" in found.advice
        assert not found.needed


def test_a_kernel_that_reports_other_pages_than_the_written_one_is_not_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    if uffd.probe_write_tracking() is not None:
        pytest.skip("the kernel has no write tracking")
    monkeypatch.setattr(tracking, "_scan_written", lambda *_: [])
    assert tracking.probe_pagemap_scan().status == "missing"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may start a process of another user")
def test_reaching_only_the_same_user_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_can_reach", lambda user: user is None)
    assert tracking.probe_ptrace().status == "limited"
    monkeypatch.setattr(tracking, "_can_reach", lambda _: False)
    assert tracking.probe_ptrace().status == "missing"


def test_a_missing_qemu_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    found = host.probe_qemu()
    assert found.status == "limited"
    assert "qemu-system-x86" in found.advice


@pytest.mark.parametrize(("text", "status"), [("always [never] advise", "limited"), ("always [advise] never", "ok")])
def test_the_chosen_word_of_the_huge_page_setting_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, status: str
) -> None:
    setting = tmp_path / "shmem_enabled"
    setting.write_text(text)
    monkeypatch.setattr(huge_pages, "_SETTING", setting)
    assert huge.probe_shmem_huge().status == status


def test_the_gain_of_huge_pages_is_measured_where_it_can_be() -> None:
    detail = huge.probe_shmem_huge().detail
    if os.geteuid():
        assert "gain not measured" in detail
    else:
        assert re.search(r"filled at [\d.]+ GiB/s in small pages, at [\d.]+ in huge ones", detail)


def test_every_interface_of_the_kernel_has_a_line() -> None:
    names = {one.name.removeprefix("network ") for one in host.probe_networks()}
    assert names >= {path.name for path in Path("/sys/class/net").iterdir() if path.is_dir()}
