# SPDX-License-Identifier: Apache-2.0
"""How a source asks an older destination; the rest is in tests/integration/test_check.py and test_versions.py."""

from __future__ import annotations

import msgspec
import pytest

from parmig.engine.messages import peer_messages as m
from parmig.engine.source.introduction import for_older_peer
from parmig.errors import ProtocolError
from tests.engine.messages.test_peer_messages import CONFIGURE

PLAIN = msgspec.structs.replace(CONFIGURE, traits={}, check=False)


@pytest.mark.parametrize("fields", [{"check": True}, {"traits": {"disks": ("a",)}}])
def test_an_older_destination_is_asked_without_what_it_does_not_know(fields: dict[str, object]) -> None:
    wish = msgspec.structs.replace(PLAIN, **fields)
    body = msgspec.msgpack.decode(m.encode_control(wish)[12:])
    [name] = fields
    body["news"] = body.pop(name)  # as a field that this parmig does not know
    with pytest.raises(ProtocolError) as refusal:
        m.decode_control(memoryview(m.encode_control(PLAIN)[:12] + msgspec.msgpack.encode(body)))
    assert for_older_peer(wish, str(refusal.value), "zmq") == PLAIN


def test_an_older_destination_is_asked_for_a_transport_that_it_knows_if_the_user_names_none() -> None:
    wish = msgspec.structs.replace(PLAIN, transport="tcp")
    reason = "transport: 'tcp' at the source, only zmq at the destination"
    assert for_older_peer(wish, reason, "auto") == msgspec.structs.replace(PLAIN, transport="zmq")
    assert for_older_peer(wish, reason, "tcp") is None
    assert for_older_peer(msgspec.structs.replace(PLAIN, transport="zmq"), reason, "auto") is None


def test_any_other_refusal_stands() -> None:
    assert for_older_peer(CONFIGURE, "machine type: 'a' at the source, 'b' at the destination", "auto") is None
    assert for_older_peer(PLAIN, "Object contains unknown field `workers`", "auto") is None
