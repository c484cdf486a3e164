# SPDX-License-Identifier: Apache-2.0
"""What both plans share: their events and instructions, and the parts that either side decides alike. Pure."""
