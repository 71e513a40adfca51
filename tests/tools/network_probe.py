#!/usr/bin/env python3
"""Try to reach addresses from inside a network namespace; needs no program in the pod.

network_probe.py NAMESPACE SECONDS    targets on stdin: [[address, port, protocol], ...]; prints those reached

NAMESPACE is a file such as /proc/1/ns/net. A refusal is an answer: the packet got there. UDP is asked a DNS question,
twice a second; SCTP is sent an INIT, which a kernel without SCTP refuses. What has not answered after so many seconds
is not reached.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import selectors
import socket
import struct
import sys
import time

CLONE_NEWNET = 0x40000000
QUESTION = bytes.fromhex("1234 0100 0001 0000 0000 0000 00 0001 0001")  # the root's address
REFUSED = (0, errno.ECONNREFUSED, errno.ENOPROTOOPT)  # or connected
AGAIN = 0.5  # seconds between questions


KINDS = {
    "TCP": (socket.SOCK_STREAM,),
    "UDP": (socket.SOCK_DGRAM,),
    "SCTP": (socket.SOCK_RAW, socket.IPPROTO_SCTP),
}


def init(port: int) -> bytes:
    """An SCTP packet with an INIT (RFC 9260, 3.3.2), its checksum left out."""
    return struct.pack("!HHII", 40000, port, 0, 0) + struct.pack("!BBHIIHHI", 1, 0, 20, 1, 65535, 1, 1, 1)


def enter(path: str) -> None:
    """Go into a network namespace."""
    with open(path) as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
            error = ctypes.get_errno()
            raise OSError(error, f"setns {path}: {os.strerror(error)}")


def probe(targets: list[tuple[str, int, str]], seconds: float) -> list[tuple[str, int, str]]:
    """The targets that answer within so many seconds, all tried at once."""
    reached: list[tuple[str, int, str]] = []
    with selectors.DefaultSelector() as selector:
        for address, port, protocol in targets:
            connection = socket.socket(socket.AF_INET, *KINDS[protocol])
            connection.setblocking(False)
            connection.connect_ex((address, port))
            event = selectors.EVENT_WRITE if protocol == "TCP" else selectors.EVENT_READ
            selector.register(connection, event, (address, port, protocol))
        deadline, asked = time.monotonic() + seconds, 0.0
        while selector.get_map() and (now := time.monotonic()) < deadline:
            if now - asked >= AGAIN:
                asked = now
                for key in [key for key in selector.get_map().values() if key.data[2] != "TCP"]:
                    with contextlib.suppress(OSError):  # told below
                        key.fileobj.send(QUESTION if key.data[2] == "UDP" else init(key.data[1]))
            for key, _ in selector.select(min(AGAIN, deadline - now)):
                error = key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if error in REFUSED:
                    reached.append(key.data)
                selector.unregister(key.fileobj)
                key.fileobj.close()
    return reached


if __name__ == "__main__":
    wanted = [tuple(target) for target in json.load(sys.stdin)]
    enter(sys.argv[1])
    print(json.dumps(probe(wanted, float(sys.argv[2]))))
