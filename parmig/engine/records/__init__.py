# SPDX-License-Identifier: Apache-2.0
"""The record of the hand-over, as a value, as a file, and in its directory."""
