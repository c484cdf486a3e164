# SPDX-License-Identifier: Apache-2.0
"""Files that another process maps are opened by what they are, not by their names. The process is this one."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from parmig.errors import GuestRefusedError
from parmig.guests.qemu.maps import Extent
from parmig.guests.qemu.qemu_files import open_mapped


def extent_of(fd: int) -> Extent:
    status = os.fstat(fd)
    return Extent((os.major(status.st_dev), os.minor(status.st_dev)), status.st_ino, 0)


@pytest.mark.parametrize("writable", [False, True])
def test_a_file_without_a_name_is_opened(tmp_path: Path, writable: bool) -> None:
    path = tmp_path / "memory"
    with path.open("w+b") as file:
        path.unlink()
        fd = open_mapped(os.getpid(), extent_of(file.fileno()), 0, "ram0", writable=writable)
        assert os.path.samestat(os.fstat(fd), os.fstat(file.fileno()))
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == (os.O_RDWR if writable else os.O_RDONLY)
        assert os.get_inheritable(fd) is False
        os.close(fd)


def test_a_descriptor_that_names_another_file_is_not_used(tmp_path: Path) -> None:
    with (tmp_path / "mapped").open("w+b") as mapped, (tmp_path / "other").open("w+b") as other:
        extent = extent_of(mapped.fileno())
        os.dup2(other.fileno(), mapped.fileno())
        with pytest.raises(GuestRefusedError, match="cannot be opened for reading and writing"):
            open_mapped(os.getpid(), extent, 0, "ram0", writable=True)
