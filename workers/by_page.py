# SPDX-License-Identifier: Apache-2.0
"""How a worker of either side answers questions about the digests of pages."""

from __future__ import annotations

from parmig.engine.messages.worker_messages import DigestPages, DigestRegions, PagesDigested, RegionDigests
from parmig.ram.page_digests import PageDigests, pack
from parmig.ram.regions import Regions


def answer_by_page(
    asked: DigestRegions | DigestPages, digests: PageDigests, regions: Regions
) -> RegionDigests | PagesDigested:
    """The answer to *asked*."""
    if isinstance(asked, DigestPages):
        region = regions[asked.region]
        pages = digests.of_pages(region.block, region.first_page + asked.first, asked.pages)
        return PagesDigested(asked.region, asked.first, pack(pages))
    wanted = {number: regions[number] for number in asked.regions}
    return RegionDigests(
        {number: digests.of_region(region.block, region.first_page, region.pages) for number, region in wanted.items()}
    )
