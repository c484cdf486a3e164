# SPDX-License-Identifier: Apache-2.0
"""Write tracking of a monitor's own memory, for the ``pagemap`` log."""

from __future__ import annotations

import os
from collections.abc import Iterable

from parmig.errors import HostRefusedError
from parmig.linux import uffd


def track_own_writes(ranges: Iterable[tuple[int, int]]) -> int:
    """Put *ranges* of this process, each an address and a size in bytes, under asynchronous write protection.

    Returns:
        a userfaultfd, which the caller closes. The kernel then drops all registrations and all protection.

    Raises:
        HostRefusedError: the kernel does not let this process track its writes.
    """
    tracking_fd = -1
    try:
        tracking_fd = uffd.create()
        uffd.enable(tracking_fd, uffd.UFFD_TRACKING_FEATURES)
        for address, size_bytes in ranges:
            uffd.register_wp(tracking_fd, address, size_bytes)
    except OSError as error:
        if tracking_fd >= 0:
            os.close(tracking_fd)
        raise HostRefusedError(
            f"the guest's process cannot track its writes: {error}; choose the tracker bitmap"
        ) from error
    return tracking_fd
