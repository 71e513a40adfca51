"""Connections to Redis by TLS."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

import redis


class Verified(redis.Connection):
    """To a server that is Redis by its certificate, whatever the address is that it is reached by."""

    def __init__(self, *, authority: Path, name: str, **more: Any) -> None:
        """Nothing is sent.

        :param authority: file with the certificate that the server's is signed by; read again for each connection.
        :param name: one of those in the server's.
        """
        super().__init__(**more)
        self.authority, self.name = authority, name

    def _connect(self) -> socket.socket:
        context = ssl.create_default_context(cafile=str(self.authority))
        return context.wrap_socket(super()._connect(), server_hostname=self.name)


def client(host: str, port: int, authority: Path, name: str, single: bool = False, **more: Any) -> redis.Redis:
    """A client by such connections.

    :param single: whether it has one connection alone.
    :param more: what a connection is given, such as `password`.
    """
    place = {"host": host, "port": port, "authority": authority, "name": name}
    pool = redis.ConnectionPool(connection_class=Verified, **place, **more)
    return redis.Redis(connection_pool=pool, single_connection_client=single)
