# SPDX-License-Identifier: Apache-2.0
"""An unmodified, running QEMU as a guest: QMP for control, ptrace for the dirty log, files for its memory."""
