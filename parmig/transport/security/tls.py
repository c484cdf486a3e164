# SPDX-License-Identifier: Apache-2.0
"""Whether the other end of a TLS connection is one to talk to, and why a handshake failed."""

from __future__ import annotations

import os
import ssl

from parmig.errors import PeerNotTrustedError
from parmig.transport.security import key_files
from parmig.transport.security.encryption import Encryption
from parmig.transport.security.peer_names import fingerprint_of, is_among, names_of
from parmig.transport.security.security import Security


def judge(tls: ssl.SSLObject | ssl.SSLSocket, security: Security, *, calling: bool) -> Encryption:
    """Whether the peer of *tls*, whose handshake is done, is one of those to talk to.

    Args:
        calling: whether this side has connected.

    Raises:
        PeerNotTrustedError: it is not.
    """
    certificate, whole = tls.getpeercert(), tls.getpeercert(binary_form=True)
    cipher = tls.cipher()
    assert certificate is not None  # the handshake is done
    assert whole is not None
    assert cipher is not None
    names, fingerprint = names_of(certificate), fingerprint_of(whole)
    who = f"{' '.join(names) or 'nobody'} (sha256:{fingerprint})"
    if security.pinned and fingerprint != security.pinned:
        raise PeerNotTrustedError(
            f"the certificate is that of {who}, expected that of the control channel, sha256:{security.pinned}; "
            "another host answers at this address, or its certificate was replaced during the migration"
        )
    if security.peers and not security.pinned and not is_among(names, fingerprint, security.peers):
        advice = "check the address, or name it by --peer" if calling else "allow it by another --peer"
        raise PeerNotTrustedError(
            f"the certificate is that of {who}, expected one of --peer {' '.join(security.peers)}; {advice}"
        )
    return Encryption(
        version=str(tls.version()),
        cipher=cipher[0],
        kernel=False,
        peer_names=names,
        fingerprint=fingerprint,
        expires_s=ssl.cert_time_to_seconds(str(certificate["notAfter"])),
    )


def why_failed(error: ssl.SSLError, security: Security, *, calling: bool) -> str:
    """Why a handshake failed by *error*, and what to do. Empty: the peers do not differ in whom they trust.

    Args:
        calling: whether this side has connected.
    """
    peer, us, role = ("receiver", "sender", "client") if calling else ("sender", "receiver", "server")
    reason = (error.reason or "").replace("_", " ").lower()
    if isinstance(error, ssl.SSLCertVerificationError):
        advice = "or name the receiver by --peer NAME" if calling and not security.peers else "and its expiry"
        authority = os.path.join(security.directory, key_files.AUTHORITY_FILE)
        return (
            f"the {peer}'s certificate is not trusted: {error.verify_message}; expected one of the authority in "
            f"{authority}; check that both key directories are of one authority, {advice}"
        )
    if "alert" in reason and "protocol version" not in reason:
        said = reason.partition("alert ")[2]
        return (
            f"the {peer} does not trust this {us}'s certificate ({said}); check that {role}-cert.pem in "
            f"{security.directory} is of the authority of the {peer}'s ca-cert.pem, and has not expired"
        )
    if "peer did not return a certificate" in reason:
        return f"the {peer} has no certificate; give it --keys"
    return ""
