# SPDX-License-Identifier: Apache-2.0
"""Guest RAM: a component of its own, with its blocks, dirty logs, codecs, and both ends of the page path.

The way of a page: ``trackers`` say which pages were written, ``dirty`` turns that into a
:class:`~parmig.ram.dirty_scanner.DirtyRegion`, ``send`` packs its pages into ``packets`` through a codec,
and ``receive`` places them in the destination's memory. Nothing here knows processes or rounds.
"""
