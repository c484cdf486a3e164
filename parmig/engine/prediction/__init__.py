# SPDX-License-Identifier: Apache-2.0
"""Predicts a migration from how a guest writes. Pure: no I/O, no clock, no processes."""
