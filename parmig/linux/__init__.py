# SPDX-License-Identifier: Apache-2.0
"""All that is known of Linux by numbers: system calls, ioctls, structure layouts, kernel probes.

Everything else asks by name. Numbers are those of x86-64 unless a table says otherwise; each module names the kernel
file that defines its numbers. A call that fails raises :class:`OSError` with the kernel's errno.
"""
