# SPDX-License-Identifier: Apache-2.0
"""A synthetic guest: a process that owns memory, writes to it, and can check whether a page was lost.

``synthetic_guest`` and ``options`` are in the engine's process. The rest runs in the guest's own process:
``synthetic_monitor`` runs the devices and answers requests, ``synthetic_devices`` has the devices, ``ledger`` counts
the writes to each page, and ``synthetic_log`` is the dirty log.
This file imports nothing, so that the process starts quickly.
"""
