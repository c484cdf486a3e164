# SPDX-License-Identifier: Apache-2.0
"""The running migration: status, rounds, policy, workers, and both sides of the conversation.

``coordinator``, ``destination``, ``policy`` and ``shares`` decide and do no I/O; ``driver``, ``pool``, ``sender`` and
``receiver`` carry out what they decide.
"""
