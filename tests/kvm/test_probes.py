# SPDX-License-Identifier: Apache-2.0
"""What ``parmig doctor`` says of KVM is what was tried."""

from __future__ import annotations

import os

import numpy as np
import pytest

from parmig.linux import kvm, kvm_abi
from parmig.probes import kvm as probes
from tests.kvm.machines import needs_kvm

pytestmark = needs_kvm


def without(monkeypatch: pytest.MonkeyPatch, capability: int) -> None:
    check = kvm.check_capability
    monkeypatch.setattr(kvm, "check_capability", lambda fd, number: 0 if number == capability else check(fd, number))


def test_a_vcpu_is_run_and_nothing_is_left_behind() -> None:
    before = len(os.listdir("/proc/self/fd"))
    found = probes.probe_kvm_guest()
    assert found.status in ("ok", "limited")
    assert "a vCPU ran, and the dirty log shows what it wrote" in found.detail
    assert probes.probe_kvm_dirty_log().detail.startswith("re-armed")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_dirty_log_that_shows_another_page_is_not_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    def another(vm: int, slot: int, bits: np.ndarray) -> None:
        bits[:] = 0
        bits[0] = 1 << 5

    monkeypatch.setattr(kvm, "get_dirty_log", another)
    found = probes.probe_kvm_guest()
    assert (found.status, found.detail) == ("limited", "a vCPU wrote page 1, the dirty log shows [5]")


def test_what_this_kvm_has_not_got_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, kvm_abi.KVM_CAP_XCRS)
    found = probes.probe_kvm_guest()
    assert found.status == "limited"
    assert "no XCRS" in found.detail


def test_a_log_that_is_re_armed_as_a_whole_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, kvm_abi.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)
    found = probes.probe_kvm_dirty_log()
    assert (found.status, found.advice) == ("limited", "Linux 5.1 sends fewer pages twice")


def test_rings_that_are_missing_or_overrun_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert probes.why_no_rings() in (None, "this host's KVM overruns its dirty rings")
    with monkeypatch.context() as here:  # stops for a ring in which nothing is, as after an overrun
        here.setattr(probes._Trial, "run", lambda trial: kvm_abi.KVM_EXIT_DIRTY_RING_FULL)
        assert probes.why_no_rings() == "this host's KVM overruns its dirty rings"
    without(monkeypatch, kvm_abi.KVM_CAP_DIRTY_LOG_RING)
    assert probes.why_no_rings() == "this host's KVM has no dirty rings"
    assert "no dirty rings" in probes.probe_kvm_dirty_log().detail


def test_a_host_without_kvm_is_told_where_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(kvm, "open_device", none)
    for probe in (probes.probe_kvm_guest, probes.probe_kvm_dirty_log):
        found = probe()
        assert (found.status, found.advice) == ("limited", "see the line KVM")
        assert "Permission denied" in found.detail
