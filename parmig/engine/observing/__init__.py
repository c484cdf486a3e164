# SPDX-License-Identifier: Apache-2.0
"""What others are told of a running command without asking: events in a file, and metrics."""
