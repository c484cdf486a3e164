# SPDX-License-Identifier: Apache-2.0
"""The worker programs: start-up and loops. What they do with pages is in ``parmig.ram``."""
