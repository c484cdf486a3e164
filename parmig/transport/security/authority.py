# SPDX-License-Identifier: Apache-2.0
"""A small authority of our own: makes the certificates of the hosts of a fleet. No files.

Keys are of P-256: OpenSSL signs with them twice as fast as with Ed25519, and every TLS library knows them.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from parmig.errors import UsageError
from parmig.transport.security.key_files import Role

AUTHORITY_DAYS = 3650
"""How long the authority's own certificate is valid. Nothing of it is on the hosts but that certificate."""

_EARLY = dt.timedelta(minutes=5)
"""Certificates begin a little earlier than now, for hosts whose clocks are late."""

_USAGES = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "client": ExtendedKeyUsageOID.CLIENT_AUTH}


class Pair(NamedTuple):
    """A certificate and its private key, both in PEM."""

    certificate: bytes
    key: bytes


def make_authority() -> Pair:
    """A new authority. Its key signs the certificates of hosts, and never other authorities."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "parmig authority")])
    builder = (
        _builder(name, name, key.public_key(), key.public_key(), _now() + dt.timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
    )
    return _pair(builder.sign(key, hashes.SHA256()), key)


def make_certificate(authority: Pair, role: Role, names: Sequence[str], days: int) -> Pair:
    """A new certificate of one host.

    Args:
        authority: that signs it.
        role: what the host may do with it: listen as a server, or connect as a client.
        names: host names and addresses; at least one.
        days: how long it is valid, but no longer than the authority.

    Raises:
        UsageError: the authority's files do not fit together, or it has expired.
    """
    issuer = read_certificate(authority.certificate)
    try:
        signing_key = serialization.load_pem_private_key(authority.key, password=None)
    except (ValueError, TypeError) as error:
        raise UsageError(f"ca-key.pem is no private key without a password: {error}") from error
    if not isinstance(signing_key, ec.EllipticCurvePrivateKey) or signing_key.public_key() != issuer.public_key():
        raise UsageError("ca-key.pem is not the key of ca-cert.pem; give the directory that parmig keygen has made")
    end = min(_now() + dt.timedelta(days=days), issuer.not_valid_after_utc)
    if end <= _now():
        raise UsageError(f"the authority has expired on {end:%Y-%m-%d}; make a new one in another directory")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    builder = (
        _builder(subject, issuer.subject, key.public_key(), signing_key.public_key(), end)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([_USAGES[role]]), critical=False)
    )
    return _pair(builder.sign(signing_key, hashes.SHA256()), key)


def read_certificate(pem: bytes) -> x509.Certificate:
    """The first certificate of *pem*.

    Raises:
        UsageError: it has none.
    """
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise UsageError(f"this is no certificate in PEM: {error}") from error


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC).replace(microsecond=0)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    end: dt.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() - _EARLY)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    return Pair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
