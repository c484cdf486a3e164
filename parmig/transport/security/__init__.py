# SPDX-License-Identifier: Apache-2.0
"""Who is at the other end of a channel: keys, proofs, and bounds for those who have shown neither."""
