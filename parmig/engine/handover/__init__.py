# SPDX-License-Identifier: Apache-2.0
"""The hand-over on record: who owns a guest, whatever dies; what asks, answers and recovers."""
