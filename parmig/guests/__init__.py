# SPDX-License-Identifier: Apache-2.0
"""Virtual machine monitors that parmig can move, each behind the one interface in ``base``."""
