# SPDX-License-Identifier: Apache-2.0
"""Who gets in by keys, and what everybody else gets. All over loopback, with real certificates."""

from __future__ import annotations

import datetime as dt
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from parmig.errors import HostRefusedError, PeerLostError, PeerNotTrustedError, PeerUnreachableError
from parmig.transport.registry import open_transport
from parmig.transport.security import authority, fleet
from parmig.transport.security.security import Security
from parmig.transport.tcp_framing import GREETING, encode
from parmig.transport.tls_connection import MAX_HANDSHAKE_BYTES
from parmig.transport.transport import Endpoint, MigrationTransport
from parmig.units import MIB, NS_PER_S
from tests.keys import keys, security
from tests.support import next_message, wait_until, while_pumping

HERE = Endpoint("tcp", "127.0.0.1", 0)


class Loop:
    """A listening channel, and those who connect to it."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.distrust = ""

    def open(self, secured: Security | None) -> MigrationTransport:
        transport = open_transport(HERE, "channel", max_message_bytes=4 * MIB, security=secured)
        self._stack.callback(transport.shutdown)
        return transport

    def listen(self, secured: Security | None = None) -> None:
        self.listener = self.open(secured)
        self.endpoint = self.listener.bind(HERE)

    def connect(self, secured: Security | None = None, timeout_ns: int = 10 * NS_PER_S) -> MigrationTransport:
        connector = self.open(secured)
        while_pumping(lambda: connector.connect(self.endpoint, timeout_ns=timeout_ns), self.pump)
        return connector

    def pump(self) -> None:
        assert self.listener.read(5) is None
        self.distrust = self.listener.take_distrust() or self.distrust  # type: ignore[attr-defined]

    def accept(self, connector: MigrationTransport) -> None:
        connector.write([b"hello"])
        assert next_message(self.listener) == [b"hello"]
        self.listener.accept()

    def stranger(self) -> socket.socket:
        sock = self._stack.enter_context(socket.create_connection((self.endpoint.host, self.endpoint.port), 10))
        sock.settimeout(0.01)
        return sock

    def answers(self, stranger: socket.socket) -> bytes:
        """All that *stranger* gets until its connection is closed."""
        got = bytearray()

        def closed() -> bool:
            self.pump()
            with suppress(TimeoutError):
                data = stranger.recv(4096)
                got.extend(data)
                return not data
            return False

        with suppress(ConnectionResetError):
            wait_until(closed, "the end of the stranger's connection")
        return bytes(got)


@pytest.fixture
def loop() -> Iterator[Loop]:
    with ExitStack() as stack:
        yield Loop(stack)


def copy(tmp_path: Path, name: str, of: Path | None = None) -> Path:
    directory = tmp_path / name
    shutil.copytree(of or keys(), directory)
    return directory


def move(directory: Path, source: str, target: str) -> None:
    for kind in ("cert", "key"):
        (directory / f"{source}-{kind}.pem").replace(directory / f"{target}-{kind}.pem")


@pytest.fixture
def another(tmp_path: Path) -> Path:
    """The keys of a host of another fleet, with the same names."""
    return Path(fleet.add_hosts(str(tmp_path / "other"), [("here.test", "127.0.0.1")], 30)[0])


def test_both_ends_know_each_other(loop: Loop) -> None:
    loop.listen(security())
    connector = loop.connect(security())
    loop.accept(connector)
    for transport, role in ((loop.listener, "client"), (connector, "server")):
        encryption = transport.encryption
        assert encryption is not None
        assert encryption.version == "TLSv1.3"
        assert encryption.peer_names[0] == "here.test"
        certificate = x509.load_pem_x509_certificate((keys() / f"{role}-cert.pem").read_bytes())
        assert encryption.fingerprint == certificate.fingerprint(hashes.SHA256()).hex()
        assert encryption.expires_s == certificate.not_valid_after_utc.timestamp()


def test_pages_and_answers_flow_both_ways_at_once(loop: Loop) -> None:
    """More than the kernel takes is under way in each direction, so each end reads while it is not done writing."""
    loop.listen(security())
    connector = loop.connect(security())
    loop.accept(connector)
    sent = [bytes([number]) * MIB for number in range(12)]
    for message in sent:
        connector.write([b"head", message], kept=True)
        loop.listener.write([message])
    for message in sent:
        assert next_message(loop.listener) == [b"head", message]
        assert next_message(connector) == [message]


Case = tuple[Security | None, Security | None, str]


def _wrong_name(tmp_path: Path, _: Path) -> Case:
    there = fleet.add_hosts(str(keys().parent), [(f"there-{tmp_path.name}.test",)], 30)[0]
    return Security(there), security(), "Hostname mismatch|IP address mismatch"


def _expired(role: str) -> Callable[[Path, Path], Case]:
    def make(tmp_path: Path, _: Path) -> Case:
        fleet_keys, host = keys().parent, copy(tmp_path, "late")
        pair = authority.Pair((fleet_keys / "ca-cert.pem").read_bytes(), (fleet_keys / "ca-key.pem").read_bytes())
        with pytest.MonkeyPatch.context() as patch:
            long_ago = dt.datetime.now(dt.UTC).replace(microsecond=0) - dt.timedelta(days=100)
            patch.setattr(authority, "_now", lambda: long_ago)
            made = authority.make_certificate(pair, role, ["here.test", "127.0.0.1"], 99)  # type: ignore[arg-type]
        (host / f"{role}-cert.pem").write_bytes(made.certificate)
        (host / f"{role}-key.pem").write_bytes(made.key)
        late = Security(str(host))
        if role == "server":
            return late, security(), "not trusted: certificate has expired"
        return security(), late, r"does not trust this sender's certificate \(certificate expired\)"

    return make


def _unknown_sender(tmp_path: Path, another: Path) -> Case:
    sender = copy(tmp_path, "sender", another)
    with open(sender / "ca-cert.pem", "ab") as file:  # it knows both authorities
        file.write((keys() / "ca-cert.pem").read_bytes())
    return security(), Security(str(sender)), r"does not trust this sender's certificate \(unknown ca\)"


def _receiver_as_sender(tmp_path: Path, _: Path) -> Case:
    host = copy(tmp_path, "host")
    move(host, "server", "client")
    return security(), Security(str(host)), r"does not trust this sender's certificate \(unsupported certificate\)"


def _sender_as_receiver(tmp_path: Path, _: Path) -> Case:
    host = copy(tmp_path, "host")
    move(host, "client", "server")
    return Security(str(host)), security(), "not trusted: unsuitable certificate purpose"


def _revoked(tmp_path: Path, _: Path) -> Case:
    host, fleet_keys = copy(tmp_path, "host"), keys().parent
    issuer = x509.load_pem_x509_certificate((fleet_keys / "ca-cert.pem").read_bytes())
    key = serialization.load_pem_private_key((fleet_keys / "ca-key.pem").read_bytes(), None)
    gone = x509.load_pem_x509_certificate((host / "client-cert.pem").read_bytes())
    now = dt.datetime.now(dt.UTC)
    entry = x509.RevokedCertificateBuilder().serial_number(gone.serial_number).revocation_date(now).build()
    builder = x509.CertificateRevocationListBuilder().issuer_name(issuer.subject).add_revoked_certificate(entry)
    builder = builder.last_update(now - dt.timedelta(days=1)).next_update(now + dt.timedelta(days=1))
    crl = builder.sign(key, hashes.SHA256())  # type: ignore[arg-type]
    (host / "ca-crl.pem").write_bytes(crl.public_bytes(serialization.Encoding.PEM))
    return Security(str(host)), security(), r"does not trust this sender's certificate \(certificate revoked\)"


REFUSED: dict[str, Callable[[Path, Path], Case]] = {
    "a receiver of another authority": lambda _, another: (
        Security(str(another)),
        security(),
        "the receiver's certificate is not trusted: .*; expected one of the authority in .*ca-cert.pem",
    ),
    "a sender of another authority": _unknown_sender,
    "a receiver of another name": _wrong_name,
    "an expired receiver": _expired("server"),
    "an expired sender": _expired("client"),
    "a receiver's keys at a sender": _receiver_as_sender,
    "a sender's keys at a receiver": _sender_as_receiver,
    "a revoked sender": _revoked,
    "a receiver that is not named": lambda *_: (
        security(),
        security("other.test"),
        "is that of here.test .*, expected one of --peer other.test",
    ),
    "a sender that is not named": lambda *_: (security("other.test"), security(), "does not let this host in"),
    "a sender that is not pinned": lambda *_: (
        Security(str(keys()), pinned="0" * 64),
        security(),
        "does not let this host in",
    ),
    "a receiver that is not pinned": lambda *_: (
        security(),
        Security(str(keys()), pinned="0" * 64),
        "expected that of the control channel",
    ),
    "a sender without keys": lambda *_: (security(), None, "the peer wants keys, and this side has none; give --keys"),
    "a receiver without keys": lambda *_: (None, security(), "the receiver has no keys.*start it with --keys"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_who_does_not_belong_is_refused_and_says_why(loop: Loop, tmp_path: Path, another: Path, case: str) -> None:
    receiver, sender, reason = REFUSED[case](tmp_path, another)
    loop.listen(receiver)
    with pytest.raises(PeerNotTrustedError, match=reason) as caught:
        loop.connect(sender)
    assert caught.value.exit_code == 3
    wait_until(lambda: loop.pump() or bool(loop.distrust) or receiver is None, "the receiver's reason")  # type: ignore[func-returns-value]


@pytest.mark.parametrize("name", ["here.test", "HERE.test", "127.0.0.1", "0:0:0:0:0:0:0:1"])
def test_a_peer_is_known_by_any_of_its_names(loop: Loop, name: str) -> None:
    from parmig.values import parse_peer

    loop.listen(security(parse_peer(name)))
    loop.accept(loop.connect(security("other.test", parse_peer(name))))


def test_a_peer_is_known_by_its_fingerprint(loop: Loop) -> None:
    from parmig.values import parse_peer

    certificate = x509.load_pem_x509_certificate((keys() / "client-cert.pem").read_bytes())
    loop.listen(security(parse_peer("sha256:" + certificate.fingerprint(hashes.SHA256()).hex(":").upper())))
    loop.accept(loop.connect(security()))


# -- strangers --------------------------------------------------------------------------------------


def anonymous(most: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = most
    return context


@pytest.mark.parametrize("most", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_tls_client_without_a_certificate_gets_nothing_of_parmig(loop: Loop, most: ssl.TLSVersion) -> None:
    loop.listen(security())
    sock = loop.stranger()
    sock.settimeout(10)
    got: list[bytes | str] = []

    def talk() -> None:
        try:
            with anonymous(most).wrap_socket(sock) as tls:
                tls.sendall(GREETING + encode([b"hello"]))
                got.append(tls.recv(100))
        except ssl.SSLError as error:
            got.append(error.reason or "")

    thread = threading.Thread(target=talk)
    thread.start()
    wait_until(lambda: loop.pump() or not thread.is_alive(), "the end of the stranger")  # type: ignore[func-returns-value]
    assert got[0] in ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "TLSV1_ALERT_PROTOCOL_VERSION")


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.0\r\n\r\n", bytes(4096), b"\x16\x03\x01\xff\xff" + bytes(100), b"\xff" * 100, GREETING]
)
def test_a_stranger_gets_a_closed_connection_and_an_alert_at_most(loop: Loop, said: bytes) -> None:
    loop.listen(security())
    stranger = loop.stranger()
    stranger.sendall(said)
    answer = loop.answers(stranger)
    assert answer == b"" or (answer[:2] == b"\x15\x03" and len(answer) == 7)


def test_a_handshake_that_never_ends_is_cut_off(loop: Loop) -> None:
    """By the time limit of strangers; and by the number of bytes, if it sends many."""
    loop.listen(security())
    silent, busy = loop.stranger(), loop.stranger()
    silent.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    record = b"\x14\x03\x03\x00\x01\x01"  # change_cipher_spec, which TLS 1.3 ignores
    with suppress(OSError):
        busy.sendall(b"\x16\x03\x01\x40\x00" + bytes(16384) + record * MAX_HANDSHAKE_BYTES)
    assert b"parmig" not in loop.answers(busy)
    assert loop.answers(silent) == b""


def test_a_connection_that_is_cut_is_lost(loop: Loop) -> None:
    """What was sent before arrives; a cut is not taken for an orderly end."""
    loop.listen(security())
    connector = loop.connect(security())
    loop.accept(connector)
    connector.write([b"last"])
    connector._peer._sock.shutdown(socket.SHUT_RDWR)  # type: ignore[attr-defined]
    assert next_message(loop.listener) == [b"last"]
    with pytest.raises(PeerLostError, match="cut off"):
        loop.listener.read(1000)


def test_bytes_that_were_changed_on_the_way_end_the_connection(loop: Loop) -> None:
    loop.listen(security())
    connector = loop.connect(security())
    loop.accept(connector)
    connector._peer._sock.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))  # type: ignore[attr-defined]
    with pytest.raises(PeerLostError, match=r"not TLS 1\.3 as agreed"):
        loop.listener.read(1000)


def test_something_that_is_no_receiver_is_unreachable(loop: Loop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        loop.endpoint = Endpoint("tcp", "127.0.0.1", server.getsockname()[1])
        connector = loop.open(security())

        def answer() -> None:
            with server.accept()[0] as sock:
                sock.sendall(b"220 mail.test ESMTP\r\n")
                sock.recv(1)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(PeerUnreachableError, match="does not speak parmig's protocol: what arrives is not TLS"):
            connector.connect(loop.endpoint, timeout_ns=10 * NS_PER_S)
        thread.join()


# -- files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda keys: (keys / "server-key.pem").unlink(), "cannot read .*server-key.pem: No such file"),
        (lambda keys: (keys / "server-key.pem").chmod(0o644), "mode 0644, so others can read it.*chmod 6[04]0"),
        (lambda keys: (keys / "ca-cert.pem").chmod(0o666), "mode 0666, so others can change it"),
        (lambda keys: (keys / "ca-cert.pem").write_bytes(b""), "is no file of 1 to"),
        (lambda keys: (keys / "ca-cert.pem").write_text("no certificate"), "ca-cert.pem cannot be used"),
        (lambda keys: shutil.copy(keys / "client-key.pem", keys / "server-key.pem"), "KEY_VALUES_MISMATCH"),
    ],
)
def test_files_that_are_unfit_are_refused(tmp_path: Path, change: Callable[[Path], object], reason: str) -> None:
    host = copy(tmp_path, "host")
    change(host)
    with pytest.raises(HostRefusedError, match=reason):
        _ = Security(str(host)).server_context


def test_a_key_with_a_password_is_refused_and_not_asked_for(tmp_path: Path) -> None:
    host = copy(tmp_path, "host")
    key = serialization.load_pem_private_key((host / "client-key.pem").read_bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )
    (host / "client-key.pem").write_bytes(locked)
    with pytest.raises(HostRefusedError, match="password"):
        _ = Security(str(host)).client_context


def test_a_link_in_a_folder_of_others_is_refused(shared_folder: Path) -> None:
    import os

    theirs = shared_folder / "keys"
    theirs.symlink_to(keys())
    os.chown(theirs, 65534, 65534, follow_symlinks=False)
    with pytest.raises(HostRefusedError, match="belongs to user 65534"):
        _ = Security(str(theirs)).server_context
