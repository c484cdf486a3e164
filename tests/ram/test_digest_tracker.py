# SPDX-License-Identifier: Apache-2.0
"""The digest tracker while the guest writes: between its steps, not only between its scans."""

from __future__ import annotations

import os

import numpy as np
import pytest

from parmig.ram.blocks import Pages
from parmig.ram.regions import Region
from parmig.ram.trackers import digest
from parmig.ram.trackers.digest import DigestTracker, digest_area_bytes
from tests.support import content, mapped

PAGES = 64
"""One group of the tracker."""


@pytest.mark.parametrize("written", [0, 40, PAGES - 1])
def test_a_write_between_the_digests_of_the_pages_and_of_their_group_is_found(
    monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    fd = -1
    with mapped(PAGES) as (memory,):
        try:
            memory.pages[:] = np.concatenate([content(number) for number in range(PAGES)])
            fd = os.memfd_create("digests")
            os.ftruncate(fd, digest_area_bytes([memory.block]))
            tracker, span = DigestTracker(fd, [memory]), Region(0, 0, PAGES)
            tracker.arm(span)
            everything = np.arange(PAGES)
            tracker.sent(0, everything, memory.pages.copy())
            digest_pages = digest._digest_pages

            def digest_then_write(pages: Pages) -> digest.Digests:
                digests = digest_pages(pages)
                memory.pages[written] = content(1000)[0]
                return digests

            monkeypatch.setattr(digest, "_digest_pages", digest_then_write)
            assert tracker.scan(span) is None  # nothing differed when the pages were read
            monkeypatch.setattr(digest, "_digest_pages", digest_pages)
            found = tracker.scan(span)
            assert found is not None
            assert np.flatnonzero(found.dirty).tolist() == [written]
            tracker.close()
        finally:
            os.close(fd)
