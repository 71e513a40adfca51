#!/usr/bin/python3
"""The agent of a member whose servers are on ports of the loopback, by TLS, with a file for its EndpointSlice.

redis_member.py FOLDER NUMBER PORT:SENTINEL ...
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "images/backup"))

import redis_agent


class File:
    """What is written of a Slice."""

    def __init__(self, file: Path, member: str, address: str) -> None:
        self.file, self.member, self.address = file, member, address

    def read(self) -> tuple[str, str, str]:
        """As the slice's."""
        name, _space, version = self.file.read_text().partition(" ")
        return name, self.address if name else "", version

    def write(self, version: str) -> None:
        """As the slice's."""
        if self.read()[2] != version:
            raise redis_agent.Problem("conflict")
        new = self.file.with_suffix(f".{self.member}")
        new.write_text(f"{self.member} {int(version) + 1}")
        new.rename(self.file)


def main() -> None:
    """Run until SIGTERM."""
    folder, number = Path(sys.argv[1]), int(sys.argv[2])
    ports = [[int(part) for part in word.split(":")] for word in sys.argv[3:]]
    members = [redis_agent.Member(f"redis-{index}", "127.0.0.1", *pair) for index, pair in enumerate(ports)]
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: ended.set())
    me, run = members[number], folder / f"run-{number}"
    run.mkdir(exist_ok=True)
    record = File(folder / "slice", me.name, f"127.0.1.{number + 1}")
    links = redis_agent.Links(folder / "secrets", folder / "ca.crt", "redis.test.svc")
    agent = redis_agent.Agent(members, me, links, record, run, lambda line: print(line, flush=True))
    redis_agent.serve_until(ended, agent)


if __name__ == "__main__":
    main()
