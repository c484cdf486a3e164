# SPDX-License-Identifier: Apache-2.0
"""Message channels between hosts, one file a scheme; orthogonal to what is sent over them."""
