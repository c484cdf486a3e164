# SPDX-License-Identifier: Apache-2.0
"""The plan of a destination for ``tools/hostile_honest.py``, and whoever carries it out."""

from __future__ import annotations

import contextlib
import time

from parmig.engine.channels.control import ControlChannel
from parmig.engine.destination_plan.destination import DestinationPlan
from parmig.engine.messages.worker_messages import DigestRegions
from parmig.engine.plan import destination_events as events
from parmig.engine.plan.destination_events import Act
from parmig.errors import PeerLostError, ProtocolError
from parmig.units import NS_PER_S
from tools.hostile_orders import MAX_STATE_BYTES, REGIONS, RELEASE

_LIMIT_NS = 5 * NS_PER_S


class HeardPlan:
    """A plan that has everything but the source's words, and is carried out at once.

    Args:
        channel: to the source, which was accepted.
    """

    def __init__(self, channel: ControlChannel) -> None:
        self._channel = channel
        self._plan = DestinationPlan(
            REGIONS,
            1,
            verify=True,
            may_ask=True,
            switchover_ns=_LIMIT_NS,
            max_state_bytes=MAX_STATE_BYTES,
            now_ns=time.monotonic_ns(),
        )
        arrived = events.StateArrived(RELEASE.size_bytes, RELEASE.digest)
        for event in (events.WorkerListens(0), events.WorkerConnected(0), events.StateConnected(), arrived):
            self._feed(event)

    def step(self) -> None:
        """Take one message. Raises the error that ends the plan, and PeerLostError after it has handed over."""
        try:
            if (message := self._channel.read()) is not None:
                self._feed(events.Heard(message))
        except PeerLostError as error:
            self._feed(events.PeerVanished(error))
            raise
        except ProtocolError as error:
            self._feed(events.Garbled(error))
        if self._plan.over:
            raise self._plan.error or PeerLostError("the source said goodbye")

    def _feed(self, event: events.Event) -> None:
        for instruction in self._plan.handle(event, time.monotonic_ns()):
            match instruction:
                case events.SendMessage(message=message):
                    with contextlib.suppress(PeerLostError):
                        self._channel.write(message)
                case events.WriteRecord(state=state):
                    self._feed(events.Recorded(state))
                case events.Instruct(worker=worker, instruction=DigestRegions(regions=numbers)):
                    self._feed(events.WorkerDigested(worker, dict.fromkeys(numbers, 0)))
                case Act.LOAD:
                    self._feed(events.StateLoaded())
                case Act.RUN:
                    if not self._plan.promised:
                        raise AssertionError("the guest runs although the plan has promised nothing")
                    self._feed(events.GuestRuns(time.monotonic_ns()))
