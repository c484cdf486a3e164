# SPDX-License-Identifier: Apache-2.0
"""The demonstration: a whole migration on one host."""
