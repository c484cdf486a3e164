# SPDX-License-Identifier: Apache-2.0
"""Snapshots: a running guest into one file of QEMU's format, and a guest that begins from such a file."""
