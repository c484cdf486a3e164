# SPDX-License-Identifier: Apache-2.0
"""How a worker reaches the bytes of a RAM block: through a mapping, or in the memory of another process."""
