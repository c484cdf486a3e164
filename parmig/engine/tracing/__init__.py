# SPDX-License-Identifier: Apache-2.0
"""Records which pages a guest writes while it runs. Nothing is moved."""
