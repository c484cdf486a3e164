# SPDX-License-Identifier: Apache-2.0
"""Ask and steer a running engine: its control socket, what it answers, and what it lets others change."""
