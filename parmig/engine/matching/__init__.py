# SPDX-License-Identifier: Apache-2.0
"""What must match between both sides of a migration, and how it is compared. Pure."""
