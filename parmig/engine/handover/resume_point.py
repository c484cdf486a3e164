# SPDX-License-Identifier: Apache-2.0
"""What a receiver leaves on disk so that another one can go on in its place: one file beside the record.

It has the secret of the session, so only its owner may read it. It is removed when the device state is loaded, and when
the session ends. The receiver and its workers hold a lock on it. So whoever gets the lock knows that no process of the
killed receiver writes to the guest any more. Layout, integers big-endian::

    8 bytes   magic "PARMIGRS"
    u32       version of the layout
    u32       length of the payload
    16 bytes  BLAKE2s of all of this but itself, and of the payload
    payload   ResumeState in msgpack
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import struct
import time
from typing import Annotated, Self

import msgspec
from msgspec import Meta

from parmig.config import MAX_WORKERS
from parmig.engine.messages.peer_messages import MAX_CONFIGURE_BYTES, Configure
from parmig.engine.records.handover_record import (
    NAME_CHARACTERS,
    SESSION_BYTES,
    RecordState,
    name_of_session,
    session_id,
)
from parmig.engine.records.record_store import RecordStore, try_lock
from parmig.errors import HostRefusedError, RecordError
from parmig.units import NS_PER_S
from parmig.version import __version__

VERSION = 1
MAX_BYTES = MAX_CONFIGURE_BYTES + 4096
"""The largest file that is read."""

KEPT_NS = 24 * 3600 * NS_PER_S
"""A file that is older is removed: no source waits so long (``agreement.MAX_RECONNECT_MS``)."""

LOCK_LIMIT_S = 5.0
"""How long the processes of a killed receiver may take to end; they take some 10 ms."""

_MAGIC = b"PARMIGRS"
_HEAD = struct.Struct(">8sII")
_DIGEST_BYTES = 16
_SUFFIX = "-destination.resume"
_FILE = re.compile(rf"[0-9a-f]{{{NAME_CHARACTERS}}}{_SUFFIX}")

_Port = Annotated[int, Meta(ge=1, le=65535)]


class ResumeState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is needed to go on.

    Attributes:
        token: the secret of the session.
        wish: of the source, which was met.
        endpoint: where the source finds the control channel.
        state_port, data_ports: where it finds the other channels; one for each worker.
        pinned: the fingerprint of the source's certificate; empty: the session has no keys.
        parmig: version that wrote it.
    """

    token: Annotated[bytes, Meta(min_length=SESSION_BYTES, max_length=SESSION_BYTES)]
    wish: Configure
    endpoint: str
    state_port: _Port
    data_ports: Annotated[tuple[_Port, ...], Meta(min_length=1, max_length=MAX_WORKERS)]
    pinned: str = ""
    parmig: str = __version__


_decoder = msgspec.msgpack.Decoder(ResumeState)


def encode_state(state: ResumeState) -> bytes:
    """The file with *state*."""
    payload = msgspec.msgpack.encode(state)
    head = _HEAD.pack(_MAGIC, VERSION, len(payload))
    return head + _digest(head, payload) + payload


def decode_state(data: bytes, path: str) -> ResumeState:
    """The state in the file *data*, which is at *path*.

    Raises:
        RecordError: it is damaged, or of another version.
    """
    advice = "it cannot be used; end the sender, and begin a new migration"
    if len(data) < _HEAD.size + _DIGEST_BYTES:
        raise RecordError(f"{path} has {len(data)} bytes, which is not all of it; {advice}")
    magic, version, length = _HEAD.unpack_from(data)
    digest, payload = data[_HEAD.size : _HEAD.size + _DIGEST_BYTES], data[_HEAD.size + _DIGEST_BYTES :]
    if magic == _MAGIC and version != VERSION:
        raise RecordError(f"{path} has version {version}, this parmig knows {VERSION}; use the parmig that wrote it")
    if magic != _MAGIC or len(payload) != length or digest != _digest(data[: _HEAD.size], payload):
        raise RecordError(f"{path} was changed or damaged; {advice}")
    try:
        return _decoder.decode(payload)
    except msgspec.MsgspecError as error:
        raise RecordError(f"{path} is not one of parmig's: {error}; {advice}") from error


def _digest(head: bytes, payload: bytes) -> bytes:
    return hashlib.blake2s(head + payload, digest_size=_DIGEST_BYTES).digest()


class ResumePoint:
    """The file of one session. Made by :meth:`create` and :meth:`take`.

    Args:
        directory_fd: owned.
        name: of the file.
        fd: of the file, locked; owned.
        token: the secret of the session.
        state: what the file had when it was taken; None: it is new.

    Attributes:
        fd: to be inherited by every process that writes to the guest's memory.
        token, state: as given.
    """

    def __init__(self, directory_fd: int, name: str, fd: int, token: bytes, state: ResumeState | None) -> None:
        self.fd = fd
        self.token = token
        self.state = state
        self._directory_fd = directory_fd
        self._name = name

    @classmethod
    def create(cls, store: RecordStore) -> Self:
        """A new session with a file that has nothing yet.

        Raises:
            HostRefusedError: it cannot be made.
        """
        _clean(store)
        token = secrets.token_bytes(SESSION_BYTES)
        name = _file_name(session_name(token))
        directory_fd = store.directory_fd()
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, 0o600, dir_fd=directory_fd)
        except OSError as error:
            os.close(directory_fd)
            raise _cannot_write(f"{store.directory}/{name}", error) from error
        try_lock(fd)
        return cls(directory_fd, name, fd, token, None)

    @classmethod
    def take(cls, store: RecordStore, session: str) -> Self:
        """The session with this name, in place of the receiver that had it.

        Raises:
            HostRefusedError: there is no such file, or a process of that receiver lives.
            RecordError: it is damaged.
        """
        name = _file_name(session)
        path = f"{store.directory}/{name}"
        fd = store.open_file(name, os.O_RDWR)
        try:
            until = time.monotonic() + LOCK_LIMIT_S
            while not try_lock(fd):
                if time.monotonic() >= until:
                    raise HostRefusedError(f"a process of session {session} still runs here; end it, and try again")
                time.sleep(0.01)
            state = decode_state(os.pread(fd, MAX_BYTES, 0), path)
            if session_name(state.token) != session:
                raise RecordError(f"{path} is that of session {session_name(state.token)}; give it its name back")
        except BaseException:
            os.close(fd)
            raise
        return cls(store.directory_fd(), name, fd, state.token, state)

    def write(self, state: ResumeState) -> None:
        """Write *state*, to the disk.

        Raises:
            HostRefusedError: that failed.
        """
        data = encode_state(state)
        try:
            if os.pwrite(self.fd, data, 0) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self.fd)
            os.fsync(self._directory_fd)
        except OSError as error:
            raise _cannot_write(self._name, error) from error

    def remove(self) -> None:
        """Remove the file: nobody can go on from here any more. Never raises; calling it twice is fine."""
        if self._name:
            with contextlib.suppress(OSError):
                os.unlink(self._name, dir_fd=self._directory_fd)
            self._name = ""

    def close(self) -> None:
        """Remove the file, and close everything."""
        self.remove()
        self.give_back()

    def give_back(self) -> None:
        """Close everything; another receiver may take the session."""
        for fd in (self.fd, self._directory_fd):
            os.close(fd)


def session_name(token: bytes) -> str:
    """What people call the session with *token*."""
    return name_of_session(session_id(token))


def resumable_sessions(store: RecordStore) -> list[str]:
    """The sessions that have a file here."""
    fd = store.directory_fd()
    try:
        names = sorted(name for name in os.listdir(fd) if _FILE.fullmatch(name))
    finally:
        os.close(fd)
    return [name.removesuffix(_SUFFIX) for name in names]


def _file_name(session: str) -> str:
    return session + _SUFFIX


def _clean(store: RecordStore) -> None:
    """Remove files that are too old, and those whose sessions are over. The records bound the others."""
    begun = {
        entry.record.name
        for entry in store.entries()
        if entry.record is not None and entry.record.side == "destination" and entry.record.state is RecordState.OPEN
    }
    for session in resumable_sessions(store):
        with contextlib.suppress(HostRefusedError, OSError):
            fd = store.open_file(_file_name(session), os.O_RDWR)
            try:
                old = time.time_ns() - os.fstat(fd).st_mtime_ns > KEPT_NS
                if try_lock(fd) and (old or session not in begun):
                    os.unlink(f"{store.directory}/{_file_name(session)}")
            finally:
                os.close(fd)


def _cannot_write(path: str, error: OSError) -> HostRefusedError:
    return HostRefusedError(
        f"{path}, from which a killed receiver can be resumed, cannot be written: {error.strerror}; make room there, "
        "name another --state-dir, or leave out --resumable"
    )
