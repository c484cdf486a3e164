# SPDX-License-Identifier: Apache-2.0
"""Dirty trackers: one interface, one file each, chosen by the name a guest's dirty log carries."""
