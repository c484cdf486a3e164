# SPDX-License-Identifier: Apache-2.0
"""What integration tests share."""

from __future__ import annotations

import pytest
import zmq


@pytest.fixture(scope="session", autouse=True)
def _lasting_zeromq_helper() -> None:
    """pyzmq keeps a context for frames that are sent without a copy, from the first one to the end of the process."""
    with zmq.Context() as context, context.socket(zmq.PAIR) as here, context.socket(zmq.PAIR) as there:
        here.bind("inproc://first")
        there.connect("inproc://first")
        there.send(bytes(1 << 20), copy=False)
        assert len(here.recv()) == 1 << 20
