# SPDX-License-Identifier: Apache-2.0
"""Traces: which pages a guest wrote in which interval, as values, in files, and in figures.

The synthetic guest replays traces and ``parmig.engine`` records them, so the room is below both.
"""
