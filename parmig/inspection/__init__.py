# SPDX-License-Identifier: Apache-2.0
"""Describes a stream or a snapshot without loading it: parmig's files and QEMU's own.

It only reads, and needs no guest. Its memory is bounded for any input.
"""

from __future__ import annotations

from parmig.inspection.inspection_report import Inspection
from parmig.inspection.inspector import inspect_file

__all__ = ["Inspection", "inspect_file"]
