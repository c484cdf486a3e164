# SPDX-License-Identifier: Apache-2.0
"""Guests whose monitor is a process that parmig starts: what they have in common.

``guest`` is the engine's side, ``process`` the owner's end of the pipe, ``messages`` what is said over it, ``monitor``
the other end. This file imports nothing, so that the process starts quickly.
"""
