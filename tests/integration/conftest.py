# SPDX-License-Identifier: Apache-2.0
"""What every integration test ends with: nothing left behind."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import psutil
import pytest

from parmig.guests.synthetic.guest import open_synthetic
from tests.integration.sides import until


@pytest.fixture(scope="session")
def fork_server() -> None:
    """Start the fork server, which lives as long as this process, so that it is no leftover of a test."""
    open_synthetic("memory=1MiB", incoming=True).close()


def _children() -> set[int]:
    return {one.pid for one in psutil.Process().children(recursive=True)}


def _descriptors() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}").partition(":[")[0])
        except FileNotFoundError:
            pass  # the listing's own
    return sorted(found)


@pytest.fixture(autouse=True)
def nothing_left(fork_server: None) -> Iterator[None]:
    """No process, no descriptor (and so no memfd) more than before the test."""
    processes, descriptors = _children(), _descriptors()
    yield
    gc.collect()
    until(lambda: _children() <= processes, "the end of all processes of the test", 5)
    assert _descriptors() == descriptors
