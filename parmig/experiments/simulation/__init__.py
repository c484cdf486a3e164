# SPDX-License-Identifier: Apache-2.0
"""Simulated migrations: hosts and guests of a scenario, moved by the real plan in simulated time."""
