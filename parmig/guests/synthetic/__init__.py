# SPDX-License-Identifier: Apache-2.0
"""A guest without a VMM: a process that owns memory, writes to it, and can tell whether a page was lost.

``guest`` holds what the engine sees, ``process`` the pipe to the guest's process, ``program`` what runs
there. This file imports nothing, so that the process starts quickly.
"""
