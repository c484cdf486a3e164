# SPDX-License-Identifier: Apache-2.0
"""Serves metrics over HTTP to whoever asks. Whoever asks is a stranger, and costs a bounded amount of memory.

At most :data:`MAX_CLIENTS` connections have a thread, each for :data:`CLIENT_LIMIT_S`. Others are closed at once, so
they take no descriptor that the migration needs.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import socketserver
import threading
import time
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

_logger = logging.getLogger(__name__)

MAX_CLIENTS = 8
CLIENT_LIMIT_S = 2.0
"""How long a client may say nothing, and how long it keeps its thread where others wait for one."""


class MetricsServer(socketserver.ThreadingMixIn, WSGIServer):
    """Listens, and answers in threads of its own until :meth:`close`.

    Args:
        host: a name or an address, without brackets.
        port: where to listen.
        registry: of the metrics.

    Raises:
        OSError: it cannot listen there.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        self._lock = threading.Lock()
        self._clients: dict[Any, float] = {}  # each connection that has a thread, and when it came
        self.address_family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        super().__init__((str(address[0]), int(address[1])), _Handler)
        self.set_app(make_wsgi_app(registry))
        self._thread = threading.Thread(target=self.serve_forever, name="parmig-metrics-http", daemon=True)
        self._thread.start()

    def server_bind(self) -> None:
        """Listen, without asking a name server for this host's name as the base class does."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether this connection gets a thread. If all are taken, those whose time is up lose theirs."""
        now = time.monotonic()
        with self._lock:
            if len(self._clients) < MAX_CLIENTS:
                self._clients[request] = now
                return True
            for client, since in self._clients.items():
                if now - since > CLIENT_LIMIT_S:
                    with contextlib.suppress(OSError):
                        client.shutdown(socket.SHUT_RDWR)
        return False

    def shutdown_request(self, request: Any) -> None:
        """End a connection; its place is free."""
        with self._lock:
            self._clients.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what a client did wrong; the base class prints a traceback."""
        _logger.debug("a connection for metrics failed", exc_info=True)

    def close(self) -> None:
        """Serve no more."""
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Handler(WSGIRequestHandler):
    timeout = CLIENT_LIMIT_S

    def log_message(self, *_: object) -> None:
        """Log nothing."""
