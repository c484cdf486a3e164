# SPDX-License-Identifier: Apache-2.0
"""A guest without a VMM: a process that owns memory, writes to it, and can check whether a page was lost.

``guest`` and ``options`` are in the engine's process. The rest runs in the guest's own: ``monitor`` ticks and answers
requests, ``devices`` are what it consists of, ``ledger`` is memory and the account of it, ``dirty`` the dirty log.
This file imports nothing, so that the process starts quickly.
"""
