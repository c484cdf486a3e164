# SPDX-License-Identifier: Apache-2.0
"""Pictures of the results of a sweep, and the page that has all of them. It needs matplotlib."""
