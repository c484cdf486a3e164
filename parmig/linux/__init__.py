# SPDX-License-Identifier: Apache-2.0
"""All that parmig knows of Linux by number: system calls, ioctls, structure layouts, kernel probes.

All other rooms use the names. Numbers are those of x86-64 unless a table says otherwise; each module names the kernel
file that defines its numbers. A call that fails raises :class:`OSError` with the kernel's errno.
"""
