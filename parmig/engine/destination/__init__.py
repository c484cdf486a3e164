# SPDX-License-Identifier: Apache-2.0
"""The destination's side of a migration: a thin ring of I/O around its plan."""
