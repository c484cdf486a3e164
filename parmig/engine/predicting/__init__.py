# SPDX-License-Identifier: Apache-2.0
"""Observes a guest that is not moved, for the model of ``prediction``: its writes, its memory, and its network."""
