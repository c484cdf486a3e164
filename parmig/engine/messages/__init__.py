# SPDX-License-Identifier: Apache-2.0
"""What sender, receiver, workers and guardian say to each other."""
