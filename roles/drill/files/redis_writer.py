"""Write to Redis without a rest, and note each key that a replica has acknowledged; or tell the keys that are there.

`write`: a line a key in LOG (when it was acknowledged in seconds, its number) until the file STOP is there. `numbers`:
a line a key that Redis has. `forget` deletes them. DRILL_HOST says where, DRILL_CA_FILE is a file that its
certificate is verified with, DRILL_SECRETS a folder with REDIS_PASSWORD; DRILL_RATE is the keys a second to come to, by
DRILL_CONNECTIONS connections.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import redis
import redis_tls

LOG, STOP = Path("/work/log"), Path("/work/stop")
PREFIX = "drill:"
TIMEOUT = 1.0  # seconds for an answer
REPLICAS = 0.9  # for a replica's acknowledgement
START = 30  # until the store must be reachable
PAUSE = 0.25  # between tries to connect: without a rest they would take the time that the store needs


def connect() -> Any:
    """One connection of its own; the Service says to whom."""
    host = os.environ["DRILL_HOST"]
    return redis_tls.client(
        host,
        6379,
        Path(os.environ["DRILL_CA_FILE"]),
        host,
        single=True,
        password=(Path(os.environ["DRILL_SECRETS"]) / "REDIS_PASSWORD").read_text().strip(),
        socket_timeout=TIMEOUT,
        socket_connect_timeout=TIMEOUT,
    )


def patiently() -> Any:
    """A connection, once there is one: a pod that is new waits for the network to let it through."""
    deadline = time.monotonic() + START
    while True:
        try:
            client = connect()
            client.ping()
            return client
        except (redis.RedisError, OSError):
            if time.monotonic() > deadline:
                raise
            time.sleep(PAUSE)


def write() -> None:
    """Until told to stop."""
    forget()
    writers = int(os.environ["DRILL_CONNECTIONS"])
    numbers, log = itertools.count(), LOG.open("w", buffering=1)
    threads = [
        threading.Thread(target=write_on_one, args=(numbers, writers / float(os.environ["DRILL_RATE"]), log))
        for _ in range(writers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def write_on_one(numbers: itertools.count[int], each: float, log: Any) -> None:
    """By one connection at a time, a key every so many seconds; one whose fate is unknown is left alone."""
    client, due = None, time.monotonic()
    while not STOP.exists():
        try:
            client = client or connect()
            number = next(numbers)
            with client.pipeline(transaction=False) as pipeline:
                pipeline.set(f"{PREFIX}{number}", number)
                pipeline.execute_command("WAIT", 1, int(1000 * REPLICAS))
                stored, replicas = pipeline.execute()
            if stored and replicas:
                print(f"{time.time():.4f} {number}", file=log)
        except (redis.RedisError, OSError):
            if client:
                client.close()
            client = None
            time.sleep(PAUSE)
        due = max(due + each, time.monotonic() - each)
        time.sleep(max(due - time.monotonic(), 0))


def numbers() -> None:
    """All that are there."""
    for name in patiently().scan_iter(f"{PREFIX}*", count=1000):
        print(name.decode().removeprefix(PREFIX))


def forget() -> None:
    """Delete what was written."""
    client = patiently()
    names = list(client.scan_iter(f"{PREFIX}*", count=1000))
    for begin in range(0, len(names), 1000):
        client.delete(*names[begin : begin + 1000])


{"write": write, "numbers": numbers, "forget": forget}[sys.argv[1]]()
