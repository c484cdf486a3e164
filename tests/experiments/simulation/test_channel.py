# SPDX-License-Identifier: Apache-2.0
"""How far a worker runs ahead of its link, by hand."""

from __future__ import annotations

import pytest
import simpy

from parmig.experiments.simulation.channel import Channel
from parmig.experiments.simulation.flows import Flows
from parmig.experiments.simulation.sharing import FlowKind, Resource
from parmig.units import MIB

CREDIT = 24 * MIB


def channel_of(rate_bytes_per_s: float) -> tuple[simpy.Environment, Channel, int]:
    env = simpy.Environment()
    flows = Flows(env, [Resource("link", "links", rate_bytes_per_s)])
    kind = flows.add_kind(FlowKind(((0, 1.0),), 1e12, "a worker"), "a guest")
    return env, Channel(env, flows, CREDIT), kind


def when(env: simpy.Environment, event: simpy.Event) -> float:
    env.run(event)
    return env.now


def test_what_fits_the_first_hold_is_passed_on_at_once() -> None:
    env, channel, kind = channel_of(10 * MIB)
    channel.send(kind, 8 * MIB, 1.0)
    assert when(env, channel.may_go_on()) == 0
    assert when(env, channel.empty()) == pytest.approx(0.8)
    assert channel.load.unacked_bytes == 0


def test_a_worker_waits_until_the_rest_takes_as_long_as_a_channel_holds() -> None:
    env, channel, kind = channel_of(10 * MIB)
    channel.send(kind, 30 * MIB, 1.0)
    # The rate is not known when it asks: 8 MiB may be left.
    assert when(env, channel.may_go_on()) == pytest.approx(2.2)
    channel.send(kind, 10 * MIB, 1.0)
    # Now 0.4 s may be left: 4 MiB of the second piece, which begins at 3 s.
    reached = channel.may_go_on()
    assert channel.load.rate_bytes_per_s == pytest.approx(10 * MIB)
    assert channel.load.unacked_bytes == pytest.approx(18 * MIB)
    assert when(env, reached) == pytest.approx(3.6)
    assert when(env, channel.empty()) == pytest.approx(4.0)
    assert channel.load.wire_bytes == 40 * MIB


def test_no_more_than_the_credit_is_under_way() -> None:
    env, channel, kind = channel_of(1000 * MIB)
    channel.send(kind, 100 * MIB, 1.0)
    env.run(channel.empty())
    channel.send(kind, 100 * MIB, 1.0)
    began_s = env.now
    assert when(env, channel.may_go_on()) - began_s == pytest.approx(0.076)


def test_credit_counts_bytes_on_the_wire() -> None:
    env, channel, kind = channel_of(10 * MIB)
    channel.send(kind, 30 * MIB, 0.5)
    # 7 MiB of 15 MiB on the wire are 14 MiB of the guest, for which this link's need is one byte each.
    assert when(env, channel.may_go_on()) == pytest.approx(1.4)
    assert channel.load.wire_bytes == 15 * MIB
