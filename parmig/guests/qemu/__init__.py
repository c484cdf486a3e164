# SPDX-License-Identifier: Apache-2.0
"""A running, unmodified QEMU: QMP for control, ptrace for the dirty log, files or its process for memory."""
