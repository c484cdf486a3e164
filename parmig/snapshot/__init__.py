# SPDX-License-Identifier: Apache-2.0
"""Snapshots: saves a running guest into one file of QEMU's format, and starts a guest from such a file."""
