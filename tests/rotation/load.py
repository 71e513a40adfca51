#!/usr/bin/env python3
"""Bounded load on the API, as its clients see it: each request is on a connection of its own, none is sent twice.

load.py URL STOP_FILE      writes {"sent": N, "failed": [...]} to standard output once STOP_FILE exists
"""

from __future__ import annotations

import http.client
import itertools
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

WORKERS = 3
PAUSE = 0.05  # seconds between two requests of a worker
TIMEOUT = 10.0  # seconds


class Load:
    """Workers that create, read, find and delete products until they are told to stop."""

    def __init__(self, url: str, stop: Path) -> None:
        self.url, self.stop = urlsplit(url), stop
        self.sent = 0
        self.failed: list[str] = []
        self._lock = threading.Lock()

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """One request; whatever is not an answer of 2xx is a failure. Returns the answer's JSON, else None."""
        connection = http.client.HTTPConnection(self.url.hostname or "", self.url.port, timeout=TIMEOUT)
        try:
            data = None if body is None else json.dumps(body).encode()
            headers = {"Content-Type": "application/json"} if data else {}
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            text = answer.read()
            problem = "" if 200 <= answer.status < 300 else f"{answer.status} {text[:120]!r}"
        except (OSError, http.client.HTTPException) as error:
            text, problem = b"", f"{type(error).__name__}: {error}"
        finally:
            connection.close()
        with self._lock:
            self.sent += 1
            if problem:
                self.failed.append(f"{time.strftime('%H:%M:%S')} {method} {path}: {problem}")
        return json.loads(text) if text and not problem else None

    def work(self, number: int) -> None:
        """A product's life, again and again."""
        for count in itertools.count():
            if self.stop.exists():
                return
            name = f"load {number} {count}"
            product = self.ask("POST", "/api/products", {"name": name, "description": "load", "price": 1})
            identity = (product or {}).get("id")
            one = [f"/api/products/{identity}"] if identity else []  # the failure to make it is one failure, not four
            for path in ("/api/products?limit=5", *one, "/api/search?q=load"):
                self.ask("GET", path)
                time.sleep(PAUSE)
            for path in one:
                self.ask("DELETE", path)

    def run(self) -> None:
        """Work until the stop file is there; a summary to standard output."""
        threads = [threading.Thread(target=self.work, args=(number,)) for number in range(WORKERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(json.dumps({"sent": self.sent, "failed": self.failed}))


if __name__ == "__main__":
    Load(sys.argv[1], Path(sys.argv[2])).run()
