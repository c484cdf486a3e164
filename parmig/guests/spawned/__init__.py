# SPDX-License-Identifier: Apache-2.0
"""What guests have in common whose monitor is a process that parmig starts.

``spawned_guest`` is the engine's side, ``monitor_process`` the owner's end of the pipe, ``monitor_messages`` the
messages, and ``monitor`` the other end. This file imports nothing, so that the process starts quickly.
"""
