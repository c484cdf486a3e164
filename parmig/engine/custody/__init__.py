# SPDX-License-Identifier: Apache-2.0
"""Who lets the source's guest run again if it was not handed over."""
