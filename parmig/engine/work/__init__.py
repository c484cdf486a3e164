# SPDX-License-Identifier: Apache-2.0
"""Who sends which regions: shares, speeds, NUMA nodes, and when to pause. Pure, except for looking up nodes."""
