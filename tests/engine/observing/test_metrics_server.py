# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
import urllib.request

import pytest
from prometheus_client import CollectorRegistry

from parmig.engine.observing.metrics_server import MAX_CLIENTS, MetricsServer

LIMIT_S = 60.0


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry(auto_describe=False)


def closed(clients: list[socket.socket]) -> list[socket.socket]:
    """Those of *clients* whose connection the server has ended."""
    ready, _, _ = select.select(clients, [], [], 0.1)
    ended = []
    for client in ready:
        with contextlib.suppress(ConnectionError):
            if client.recv(1):
                continue
        ended.append(client)
    return ended


def test_strangers_that_say_nothing_take_few_threads_and_do_not_stay(
    registry: CollectorRegistry, capfd: pytest.CaptureFixture[str]
) -> None:
    threads = threading.active_count()
    server = MetricsServer("127.0.0.1", 0, registry)
    most, deadline = 0, time.monotonic() + LIMIT_S
    try:
        with contextlib.ExitStack() as strangers:
            waiting = [
                strangers.enter_context(socket.create_connection(server.server_address[:2], LIMIT_S))
                for _ in range(5 * MAX_CLIENTS)
            ]
            while waiting and time.monotonic() < deadline:
                most = max(most, threading.active_count() - threads)
                for client in closed(waiting):
                    waiting.remove(client)
            assert not waiting
        assert most <= MAX_CLIENTS + 1  # and the thread that listens
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics", timeout=LIMIT_S) as answer:
            assert answer.status == 200
    finally:
        server.close()
    assert capfd.readouterr().err == ""


def test_garbage_prints_nothing(registry: CollectorRegistry, capfd: pytest.CaptureFixture[str]) -> None:
    server = MetricsServer("127.0.0.1", 0, registry)
    try:
        for words in (b"\x16\x03\x01\x02\x00\x01", b"GET " + b"a" * 70_000, b"GET / HTTP/1.0\r\n"):
            with socket.create_connection(server.server_address[:2], LIMIT_S) as stranger:
                stranger.sendall(words)
                stranger.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionError):
                    while stranger.recv(1 << 16):
                        pass
    finally:
        server.close()
    assert capfd.readouterr().err == ""
