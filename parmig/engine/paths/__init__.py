# SPDX-License-Identifier: Apache-2.0
"""The network paths of a migration: found by both sides, and given to workers."""
