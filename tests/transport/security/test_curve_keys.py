# SPDX-License-Identifier: Apache-2.0
"""Keys of data channels over ZeroMQ."""

from __future__ import annotations

from parmig.transport.security.curve_keys import caller_keys, has_curve, listener_keys

SESSION = bytes(range(16))


def test_the_keys_are_those_of_every_other_release() -> None:
    assert has_curve()
    keys = listener_keys(SESSION, 1)
    assert keys.secret.hex() == "fe48a180a16c215e045055d56e0db5f31631d92c694d65d2c273d4c53b0cb9b2"
    assert keys.public.hex() == "c15a256f13cd59f25c0fc599cbd6b71118545adb5a30b61d9864759aab44ea7d"


def test_both_ends_of_a_channel_know_each_other() -> None:
    listener, caller = listener_keys(SESSION, 1), caller_keys(SESSION, 1)
    assert (listener.peer, caller.peer) == (caller.public, listener.public)
    assert listener.public != caller.public


def test_no_two_channels_have_a_key_in_common() -> None:
    ends = [make(session, worker) for make in (listener_keys, caller_keys) for session, worker in CHANNELS]
    assert len({end.secret for end in ends} | {end.public for end in ends}) == 4 * len(CHANNELS)


CHANNELS = [(SESSION, 0), (SESSION, 1), (SESSION, 256), (bytes(16), 0)]


def test_a_secret_is_not_shown() -> None:
    keys = listener_keys(SESSION, 1)
    assert keys.secret.hex() not in repr(keys)
    assert repr(keys.secret) not in repr(keys)
