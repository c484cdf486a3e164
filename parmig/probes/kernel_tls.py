# SPDX-License-Identifier: Apache-2.0
"""Whether the kernel could encrypt TLS connections (kTLS), and why parmig does not let it."""

from __future__ import annotations

from parmig.linux import sockets
from parmig.probes.probe import Probe

IN_MEMORY = "Python's TLS works in memory here, which the kernel cannot take over"
"""Why kTLS is not used even where the kernel has it; see security.md."""


def why_not_used() -> str:
    """Why the kernel does not encrypt here."""
    reason = sockets.probe_kernel_tls()
    return IN_MEMORY if reason is None else f"the kernel offers no TLS: {reason}"


def probe_kernel_tls() -> Probe:
    """Whether the kernel offers TLS on a connected pair of sockets, and whether OpenSSL could ask for it."""
    import ssl  # takes 40 ms

    reason = sockets.probe_kernel_tls()
    kernel = "the kernel offers TLS" if reason is None else f"the kernel offers no TLS ({reason})"
    named = "with" if hasattr(ssl, "OP_ENABLE_KTLS") else "without"
    openssl = f"{ssl.OPENSSL_VERSION}, Python {named} OP_ENABLE_KTLS"
    return Probe("kernel TLS", "limited", f"{kernel}; {openssl}; not used: {IN_MEMORY}")
