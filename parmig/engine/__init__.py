# SPDX-License-Identifier: Apache-2.0
"""The running migration: status, rounds, policy, workers, and both sides of the conversation.

``coordinator``, ``policy``, ``partition`` and ``shares`` decide and do no I/O; ``pool``, ``peer``,
``sender`` and ``receiver`` do what was decided.
"""
