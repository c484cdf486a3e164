# SPDX-License-Identifier: Apache-2.0
"""Keys, certificates and TLS: who may be at the other end of a channel, and what encrypts it."""
