# SPDX-License-Identifier: Apache-2.0
"""The control channel and the state channel of either side, and what secures them."""
