# SPDX-License-Identifier: Apache-2.0
"""Experiments: sweeps over many migrations, the hosts that they run on, their results, tables and plots.

Heavy libraries (matplotlib, pyarrow, pyroute2) are in the extra ``experiments``, and are imported where they are used.
"""
