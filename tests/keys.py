# SPDX-License-Identifier: Apache-2.0
"""Keys of one fleet for all tests of a process, made when they are first needed."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from parmig.transport.security.fleet import add_hosts
from parmig.transport.security.security import Security

HERE = ("here.test", "localhost", "127.0.0.1", "127.0.0.2", "::1")


@functools.cache
def keys() -> Path:
    """The directory of keys of this host."""
    fleet = tempfile.mkdtemp(prefix="parmig-keys-")
    atexit.register(shutil.rmtree, fleet, ignore_errors=True)
    return Path(add_hosts(fleet, [HERE], 30)[0])


def security(*peers: str) -> Security:
    """What secures a channel by :func:`keys`."""
    return Security(str(keys()), peers)
