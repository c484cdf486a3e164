# SPDX-License-Identifier: Apache-2.0
"""Where the pages of a worker go: a channel to the destination, or a snapshot file in one of its formats."""
