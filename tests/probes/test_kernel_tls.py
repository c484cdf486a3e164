# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from parmig.engine.reporting.encryption_report import encryption_report
from parmig.linux import sockets
from parmig.probes import kernel_tls
from parmig.transport.security.encryption import Encryption

ENCRYPTION = Encryption("TLSv1.3", "TLS_AES_128_GCM_SHA256", False, ("localhost",), "0" * 64, 0.0)


def test_what_the_kernel_answers_is_shown_and_why_it_is_not_used() -> None:
    reason = sockets.probe_kernel_tls()
    probe = kernel_tls.probe_kernel_tls()
    assert ("offers no TLS" in probe.detail) is (reason is not None)
    assert kernel_tls.IN_MEMORY in probe.detail
    assert (reason or kernel_tls.IN_MEMORY) in kernel_tls.why_not_used()


@pytest.mark.parametrize("reason", ["No such file or directory", None])
def test_the_report_says_why_the_kernel_does_not_encrypt(monkeypatch: pytest.MonkeyPatch, reason: str | None) -> None:
    monkeypatch.setattr(sockets, "probe_kernel_tls", lambda: reason)
    report = encryption_report(ENCRYPTION, "tcp")
    assert report is not None
    assert not report.kernel
    assert (reason or kernel_tls.IN_MEMORY) in report.kernel_reason
