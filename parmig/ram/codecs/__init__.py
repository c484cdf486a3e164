# SPDX-License-Identifier: Apache-2.0
"""Page codecs: one file each, chosen by name, negotiated; set up once per channel."""
