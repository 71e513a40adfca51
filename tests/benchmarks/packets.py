#!/usr/bin/env python3
"""Send packets from inside a pod, and print when each was sent that was answered.

packets.py NAMESPACE ADDRESS    NAMESPACE is a file such as /proc/1/ns/net; ends when its standard input does
"""

from __future__ import annotations

import selectors
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import network_probe

EVERY = 0.005  # seconds between two packets
PATIENCE = 0.5  # seconds for an answer; the kernel sends a packet again after one


def packets(address: str) -> None:
    """Send them to a port that nobody listens on: a refusal is an answer, and a packet that is dropped has none."""
    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin, selectors.EVENT_READ)
        following = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= following:
                connection = socket.socket()
                connection.setblocking(False)
                connection.connect_ex((address, 7))
                selector.register(connection, selectors.EVENT_WRITE, now)
                following = now + EVERY
            for key, _ in selector.select(max(0.0, following - time.monotonic())):
                if key.fileobj is sys.stdin:
                    return
                print(key.data, flush=True)
                selector.unregister(key.fileobj)
                key.fileobj.close()
            for key in [key for key in selector.get_map().values() if key.data and key.data < now - PATIENCE]:
                selector.unregister(key.fileobj)
                key.fileobj.close()


if __name__ == "__main__":
    network_probe.enter(sys.argv[1])
    packets(sys.argv[2])
