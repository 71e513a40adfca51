#!/usr/bin/env python3
"""Write to Redis all the time, and keep what was acknowledged: by the master, and by a replica (WAIT 1).

redis_writer.py write LOG [SECONDS]   a line an acknowledged write: its time, and its number; until SIGTERM, or so long
redis_writer.py check LOG             compare the log with Redis; as JSON: acknowledged, lost, the longest gap, a second
redis_writer.py clean LOG             delete the keys of a log

REDIS_HOST, REDIS_PORT and REDIS_PASSWORD_FILE say where; WRITER_RATE how many a second (250), WRITER_WORKERS by how
many connections (4). Nothing is written twice: what is not acknowledged within a second is given up.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from itertools import count, islice, pairwise
from pathlib import Path

import redis

TIMEOUT = 1.0
PAUSE = 0.02
"""Seconds before the next try where there is no connection."""

TOGETHER = 1000
KEEP = 6 * 3600
"""Seconds that a key stays where nobody deletes it."""


def connect() -> redis.Redis:
    """One connection of its own; DNS and the Service say to whom."""
    return redis.Redis(
        host=os.environ.get("REDIS_HOST", "redis"),
        port=int(os.environ.get("REDIS_PORT", "6379")),
        password=Path(os.environ["REDIS_PASSWORD_FILE"]).read_text().strip(),
        socket_timeout=TIMEOUT,
        socket_connect_timeout=TIMEOUT,
        single_connection_client=True,
    )


def key(log: Path, number: int) -> str:
    """Each log has its own."""
    return f"drill:{log.stem}:{number}"


class Writer:
    """Several connections that share numbers, a pace and a log."""

    def __init__(self, log: Path) -> None:
        self.log, self.numbers, self.ended, self.lock = log, count(), threading.Event(), threading.Lock()
        self.workers = int(os.environ.get("WRITER_WORKERS", "4"))
        self.rest = self.workers / float(os.environ.get("WRITER_RATE", "250"))
        self.file = log.open("a", buffering=1)

    def run(self, seconds: float) -> None:
        """Write until the end."""
        threads = [threading.Thread(target=self._work) for _ in range(self.workers)]
        for thread in threads:
            thread.start()
        self.ended.wait(seconds or None)
        self.ended.set()
        for thread in threads:
            thread.join()
        self.file.close()

    def _work(self) -> None:
        client: redis.Redis | None = None
        due = time.monotonic()
        while not self.ended.is_set():
            try:
                client = client or connect()
                with self.lock:
                    number = next(self.numbers)
                with client.pipeline(transaction=False) as pipeline:
                    pipeline.set(key(self.log, number), number, ex=KEEP)
                    pipeline.execute_command("WAIT", 1, int(TIMEOUT * 900))
                    stored, replicas = pipeline.execute()
                if stored and replicas >= 1:
                    with self.lock:
                        self.file.write(f"{time.time():.6f} {number}\n")
            except (redis.RedisError, OSError):
                if client:
                    client.close()
                client = None
                self.ended.wait(PAUSE)
            due = max(due + self.rest, time.monotonic() - self.rest)
            self.ended.wait(max(0.0, due - time.monotonic()))


def acknowledged(log: Path) -> list[tuple[float, int]]:
    """By time; a line that was cut off by the end is none."""
    lines = [line.split() for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return sorted((float(moment), int(number)) for moment, number in lines)


def batches(numbers: list[int]) -> Iterator[list[int]]:
    """Some at a time."""
    rest = iter(numbers)
    while batch := list(islice(rest, TOGETHER)):
        yield batch


def check(log: Path) -> dict[str, object]:
    """What became of the writes of a log."""
    found = acknowledged(log)
    client, lost = connect(), []
    for batch in batches([number for _moment, number in found]):
        values = client.mget([key(log, number) for number in batch])
        lost += [number for number, value in zip(batch, values, strict=True) if value != str(number).encode()]
    moments = [moment for moment, _number in found]
    gaps = [(after - before, before) for before, after in pairwise(moments)]
    gap, since = max(gaps, default=(0.0, 0.0))
    lasted = (moments[-1] - moments[0] - gap) if len(moments) > 1 else 0.0
    return {
        "acknowledged": len(found),
        "lost": len(lost),
        "first_lost": lost[:10],
        "gap": round(gap, 3),
        "gap_since": round(since, 3),
        "per_second": round(len(found) / lasted) if lasted else 0,
    }


def main() -> None:
    """Run what the arguments name."""
    match sys.argv[1:]:
        case ["write", file, *seconds]:
            writer = Writer(Path(file))
            signal.signal(signal.SIGTERM, lambda _number, _frame: writer.ended.set())
            writer.run(float(seconds[0]) if seconds else 0.0)
        case ["check", file]:
            print(json.dumps(check(Path(file))))
        case ["clean", file]:
            client = connect()
            for batch in batches([number for _moment, number in acknowledged(Path(file))]):
                client.delete(*[key(Path(file), number) for number in batch])
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
