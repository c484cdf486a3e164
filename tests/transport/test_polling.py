# SPDX-License-Identifier: Apache-2.0
"""What a poller says of descriptors and of transports that know more than their descriptors."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from parmig.transport.polling import Poller


class Source:
    """Ready, or not, whatever its descriptor says."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.is_ready = False
        self.attend_ms: int | None = None

    def pollables(self) -> list[int]:
        return [self.fd]

    def ready(self) -> bool:
        return self.is_ready


@pytest.fixture
def fds() -> Iterator[list[int]]:
    made = [os.eventfd(0) for _ in range(2)]
    yield made
    for fd in made:
        os.close(fd)


def test_what_is_readable_is_named_until_it_is_unwatched(fds: list[int]) -> None:
    poller = Poller(fds[0])
    poller.watch(fds[1])
    assert poller.poll(0) == set()
    os.eventfd_write(fds[1], 1)
    assert poller.poll() == {fds[1]}
    poller.unwatch(fds[1])
    assert poller.poll(0) == set()
    with pytest.raises(KeyError):
        poller.unwatch(fds[1])


def test_a_source_that_is_ready_ends_the_wait_and_hides_nothing(fds: list[int]) -> None:
    source = Source(fds[0])
    poller = Poller(source, fds[1])
    assert poller.poll(0) == set()
    source.is_ready = True
    assert poller.poll() == {fds[0]}
    os.eventfd_write(fds[1], 1)
    assert poller.poll() == set(fds)


def test_what_is_broken_ends_the_wait() -> None:
    here, there = os.pipe()
    os.close(there)
    try:
        assert Poller(here).poll() == {here}
    finally:
        os.close(here)


def test_a_source_is_attended_to_as_often_as_it_wants(fds: list[int]) -> None:
    source = Source(fds[0])
    source.attend_ms = 1
    assert Poller(source).poll() == set()
