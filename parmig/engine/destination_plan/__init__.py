# SPDX-License-Identifier: Apache-2.0
"""The destination's plan: events in, instructions out, no I/O, and no clock of its own."""
