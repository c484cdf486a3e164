# SPDX-License-Identifier: Apache-2.0
"""Message channels between hosts, one file for each scheme. They know nothing of what is sent."""
