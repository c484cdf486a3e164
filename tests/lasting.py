# SPDX-License-Identifier: Apache-2.0
"""Processes that outlive the test that started them, because later tests use them."""

from __future__ import annotations

LASTING: set[int] = set()
"""Their process ids. Whoever starts one adds it, and ends it at the end of the session."""
