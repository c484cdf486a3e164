# SPDX-License-Identifier: Apache-2.0
"""The report of a migration, its progress, and what is noted on the way."""
