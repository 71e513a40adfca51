#!/usr/bin/env python3
"""Requests as their client sees them, each on a connection of its own, from whatever network it is started in.

client.py ADDRESS PORT HOST AUTHORITY CONNECTIONS

Reads [{"method", "path", "headers", "body"}, ...] from standard input, sends them from so many connections at once, and
writes [{"status", "headers", "text"}, ...] in the same order. Status 0 is a connection that broke; its text says how.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

TIMEOUT = 30  # seconds


@dataclass
class Server:
    """Where requests go, and who signs for it."""

    address: str
    port: int
    host: str
    context: ssl.SSLContext

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request."""
        connection = http.client.HTTPSConnection(self.host, self.port, timeout=TIMEOUT)
        body = request.get("body")
        try:
            plain = socket.create_connection((self.address, self.port), TIMEOUT)
            connection.sock = self.context.wrap_socket(plain, server_hostname=self.host)
            data = None if body is None else body.encode()
            connection.request(request["method"], request["path"], data, request.get("headers") or {})
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
            headers = {name.lower(): value for name, value in answer.getheaders()}
            return {"status": answer.status, "headers": headers, "text": text}
        except (OSError, http.client.HTTPException) as error:
            return {"status": 0, "headers": {}, "text": f"{type(error).__name__}: {error}"}
        finally:
            connection.close()


def main() -> None:
    """Send what was read."""
    address, port, host, authority, connections = sys.argv[1:]
    server = Server(address, int(port), host, ssl.create_default_context(cafile=authority))
    with ThreadPoolExecutor(int(connections)) as clients:
        print(json.dumps(list(clients.map(server.ask, json.load(sys.stdin)))))


if __name__ == "__main__":
    main()
