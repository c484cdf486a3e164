# SPDX-License-Identifier: Apache-2.0
"""What holds for every test: it leaves no descriptor and no child process behind."""

from __future__ import annotations

import contextlib
import gc
import glob
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import psutil
import pytest
import zmq

from parmig.config import GUARDIAN_PROGRAM, SNAPSHOT_PROGRAMS, WORKER_PROGRAMS
from parmig.processes import warm_up
from tests.lasting import LASTING

# Timings are for benchmarks: on a busy machine any example may take long.
hypothesis.settings.register_profile("parmig", deadline=None)
hypothesis.settings.load_profile("parmig")

PATIENCE_S = 30.0
"""ZeroMQ's threads and the kernel may take a moment to let go."""


@pytest.fixture(scope="session", autouse=True)
def _no_signal_is_ignored() -> None:
    """Tests send these to processes that they start. nohup, and a shell that runs pytest in the background, ignore
    some of them, and what is started would inherit that."""
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _records_apart(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Records of hand-overs and control sockets of tests lie apart from those of the host."""
    directory = tmp_path_factory.mktemp("records")
    directory.chmod(0o700)
    os.environ["PARMIG_STATE_DIR"] = str(directory)
    sockets = tmp_path_factory.mktemp("sockets")
    sockets.chmod(0o700)
    os.environ["PARMIG_RUN_DIR"] = str(sockets)


@pytest.fixture(scope="session", autouse=True)
def _lasting_helpers(_no_signal_is_ignored: None) -> None:
    """What lives as long as the interpreter is there from the start: fork server, pyzmq's thread
    that lets go of frames which were sent without a copy."""
    warm_up(*WORKER_PROGRAMS, *SNAPSHOT_PROGRAMS, GUARDIAN_PROGRAM)
    with zmq.Context() as context, context.socket(zmq.PAIR) as one, context.socket(zmq.PAIR) as other:
        one.bind("inproc://first-frame")
        other.connect("inproc://first-frame")
        other.send(bytes(1 << 20), copy=False)
        one.recv()


def _descriptors() -> set[tuple[int, str]]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add((int(name), os.readlink(f"/proc/self/fd/{name}")))
        except OSError:  # the listing's own
            pass
    return found


def _children() -> set[int]:
    """All processes below this one. The kernel lists them by thread, which is faster than to look at all of /proc."""
    below: set[int] = set()
    parents = [os.getpid()]
    while parents:
        for path in glob.glob(f"/proc/{parents.pop()}/task/*/children"):
            with contextlib.suppress(OSError):  # it ended
                parents += map(int, Path(path).read_text().split())
        below.update(parents)
    return below


def _name(pid: int) -> str:
    """Of the program of a process; empty: it is gone."""
    try:
        return psutil.Process(pid).name()
    except psutil.NoSuchProcess:
        return ""


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    """Fail a test after which there are more descriptors or children than before it."""
    descriptors, children = _descriptors(), _children()
    yield
    until = time.monotonic() + PATIENCE_S
    while left := (_descriptors() - descriptors) | {
        (pid, name) for pid in _children() - children - LASTING if (name := _name(pid))
    }:
        gc.collect()
        if time.monotonic() > until:
            pytest.fail(f"left behind (descriptor and file, or process and name): {sorted(left)}")
        time.sleep(0.01)


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that every user reaches and may write to, as /tmp is. Its last name is in no other."""
    if os.geteuid():
        pytest.skip("only root can act as another user")
    with tempfile.TemporaryDirectory(prefix="parmig-test-", dir="/var/tmp") as directory:
        os.chmod(directory, 0o1777)
        yield Path(directory)
