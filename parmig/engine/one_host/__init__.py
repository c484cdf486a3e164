# SPDX-License-Identifier: Apache-2.0
"""Both sides on one host: memory that stays in place, and copies from memory to memory."""
