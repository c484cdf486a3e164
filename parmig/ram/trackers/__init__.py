# SPDX-License-Identifier: Apache-2.0
"""Dirty trackers: one interface, one file each, chosen by the name in the guest's dirty log."""
