# SPDX-License-Identifier: Apache-2.0
"""What a stream or a snapshot holds, told without loading it: parmig's files and QEMU's own.

Reads only, and asks no guest. Memory stays bounded whatever the input says of itself.
"""

from __future__ import annotations

from parmig.inspection.inspection_report import Inspection
from parmig.inspection.inspector import inspect_file

__all__ = ["Inspection", "inspect_file"]
