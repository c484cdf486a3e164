# SPDX-License-Identifier: Apache-2.0
"""What ``parmig doctor`` says of the rights of a process that has only some capabilities."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from parmig.linux import privileges
from parmig.probes import Probe, rights

ATTACH = (privileges.CAP_SYS_PTRACE, privileges.CAP_DAC_READ_SEARCH, privileges.CAP_FOWNER)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to keep some of")


def shown_with_only(*capabilities: int) -> dict[str, Probe]:
    """What a process of this user finds that has these capabilities and no others."""
    code = (
        "import sys, msgspec; from parmig.linux import privileges; from parmig.probes import rights\n"
        f"privileges.keep_only({capabilities!r})\n"
        "sys.stdout.buffer.write(msgspec.json.encode([probe() for _, probe in rights.PROBES]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=200)
    return {probe.name: probe for probe in msgspec.json.decode(done.stdout, type=list[Probe])}


def test_each_missing_capability_is_named() -> None:
    shown = shown_with_only()
    assert list(shown) == [name for name, _ in rights.PROBES]
    assert shown["right: any QEMU"].status == "limited"
    assert shown["right: any QEMU"].detail == "lacks CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH, CAP_FOWNER"


@needs_root
def test_the_documented_capabilities_reach_every_qemu() -> None:
    shown = shown_with_only(*ATTACH)
    assert shown["right: any QEMU"].status == shown["right: own QEMU"].status == "ok"
    assert shown["right: low ports"].status in ("ok", "limited")


@needs_root
@pytest.mark.parametrize("missing", ATTACH)
def test_one_missing_capability_is_the_only_one_named(missing: int) -> None:
    shown = shown_with_only(*(capability for capability in ATTACH if capability != missing))
    names = {getattr(privileges, name): name for name in vars(privileges) if name.startswith("CAP_")}
    assert shown["right: any QEMU"].detail == f"lacks {names[missing]}"


@pytest.mark.parametrize(("scope", "status"), [("0", "ok"), ("1", "limited"), ("2", "limited"), ("3", "limited")])
def test_without_a_capability_the_scope_of_yama_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scope: str, status: str
) -> None:
    (tmp_path / "scope").write_text(scope)
    monkeypatch.setattr(rights, "_YAMA", str(tmp_path / "scope"))
    monkeypatch.setattr(privileges, "has", lambda _: False)
    probe = rights.probe_own_qemu()
    assert probe.status == status
    assert ("digest" in probe.advice) is (status == "limited")


def test_where_low_ports_begin_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "start").write_text("80")
    monkeypatch.setattr(rights, "_FIRST_FREE_PORT", str(tmp_path / "start"))
    monkeypatch.setattr(privileges, "has", lambda _: False)
    assert "80" in rights.probe_low_ports().detail
