# SPDX-License-Identifier: Apache-2.0
"""Compares the configurations of both sides before anything is touched. Pure."""
