"""Write to Elasticsearch at an even rate, and note each document that was acknowledged; or tell those that are there.

`write [SECONDS]`: a line a document in LOG (when it was acknowledged in seconds, its number) until the file STOP is
there; in HEALTH a line a change of the cluster's health as its master tells it (`none`: no master answers). `numbers`:
a line a document that the index has. `forget`: the index is deleted.

It stands alone, in any pod with Python. DRILL_URL says where; DRILL_SECRETS is a folder with ELASTICSEARCH_PASSWORD
and, where it is not elastic, ELASTICSEARCH_USERNAME; DRILL_RATE is the documents a second to come to, by
DRILL_CONNECTIONS connections. A document that is not acknowledged within a second is written again, by another
connection, until it is.
"""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

URL = os.environ.get("DRILL_URL", "http://elasticsearch:9200")
SECRETS = Path(os.environ.get("DRILL_SECRETS", "/etc/citadelbuy/secrets"))
RATE = float(os.environ.get("DRILL_RATE", "200"))
WRITERS = int(os.environ.get("DRILL_CONNECTIONS", "16"))
FOLDER = Path(os.environ.get("DRILL_FOLDER", "/work"))
LOG, HEALTH, STOP = FOLDER / "log", FOLDER / "health", FOLDER / "stop"
INDEX = "drill_writes"
SETTINGS = {"number_of_shards": 1, "auto_expand_replicas": "0-1"}  # as the API makes its own
TIMEOUT = 1.0
START = 30  # seconds until the store must be reachable
PAUSE = 0.05  # between tries: a refused connection is refused at once
PAGE = 5000
Body = dict[str, Any]


class Client:
    """One connection, until something goes wrong with it."""

    def __init__(self, timeout: float = TIMEOUT) -> None:
        name = SECRETS / "ELASTICSEARCH_USERNAME"
        user = name.read_text().strip() if name.exists() else ""
        login = f"{user or 'elastic'}:{(SECRETS / 'ELASTICSEARCH_PASSWORD').read_text().strip()}"
        token = base64.b64encode(login.encode()).decode()
        self.headers = {"Content-Type": "application/json", "Authorization": f"Basic {token}"}
        self.timeout = timeout
        self.connection: http.client.HTTPConnection | None = None

    def ask(self, method: str, path: str, body: Body | None = None) -> tuple[int, Body]:
        """Status and answer; the status is 0 where there was none."""
        try:
            if self.connection is None:
                self.connection = http.client.HTTPConnection(urlsplit(URL).netloc, timeout=self.timeout)
            self.connection.request(method, path, json.dumps(body) if body is not None else None, self.headers)
            answer = self.connection.getresponse()
            return answer.status, json.loads(answer.read() or b"{}")
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            return 0, {"error": str(error)}

    def close(self) -> None:
        """The next question takes another connection."""
        if self.connection is not None:
            self.connection.close()
        self.connection = None


def patiently(method: str, path: str, body: Body | None = None, missing: bool = False) -> Body:
    """What it answers, once it does: a pod that is new waits for the network to let it through."""
    client, deadline = Client(START), time.monotonic() + START
    while True:
        status, answer = client.ask(method, path, body)
        if status == 200 or (missing and status == 404):
            return answer
        if time.monotonic() > deadline:
            sys.exit(f"{method} {path} at {URL}: {status or 'no answer'} {answer.get('error', '')}")
        time.sleep(PAUSE)


class Writers:
    """They share a sequence and a log."""

    def __init__(self, seconds: float) -> None:
        self.begun = time.monotonic()
        self.end = self.begun + seconds
        self.numbers = itertools.count()
        self.lock = threading.Lock()

    def ended(self) -> bool:
        """Whether they were told to stop."""
        return time.monotonic() > self.end or STOP.exists()

    def run(self) -> None:
        """Until they are."""
        with LOG.open("w", buffering=1) as log, HEALTH.open("w", buffering=1) as health:
            threads = [threading.Thread(target=self.write, args=(log,)) for _ in range(WRITERS)]
            threads.append(threading.Thread(target=self.watch, args=(health,)))
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def write(self, log: Any) -> None:
        """The next documents, each at its time, or as soon as those before allow."""
        client = Client()
        while not self.ended():
            with self.lock:
                number = next(self.numbers)
            time.sleep(max(0.0, self.begun + number / RATE - time.monotonic()))
            while client.ask("PUT", f"/{INDEX}/_doc/{number}", {"number": number})[0] not in (200, 201):
                client.close()
                if self.ended():
                    return
                time.sleep(PAUSE)
            print(f"{time.time():.4f} {number}", file=log)

    def watch(self, health: Any) -> None:
        """The health, when it changes."""
        client, before = Client(), ""
        while not self.ended():
            status, answer = client.ask("GET", "/_cluster/health?master_timeout=900ms")
            now = answer["status"] if status == 200 else "none"
            if now == "none":
                client.close()
            if now != before:
                print(f"{time.time():.4f} {now}", file=health)
            before = now
            time.sleep(0.1)


def write() -> None:
    """Into a new index."""
    forget()
    patiently("PUT", f"/{INDEX}", {"settings": SETTINGS})
    Writers(float(sys.argv[2]) if len(sys.argv) > 2 else float("inf")).run()


def numbers() -> None:
    """All that are there."""
    patiently("POST", f"/{INDEX}/_refresh")
    body: Body = {"size": PAGE, "sort": ["number"], "track_total_hits": False}
    while hits := patiently("POST", f"/{INDEX}/_search?allow_partial_search_results=false", body)["hits"]["hits"]:
        for hit in hits:
            print(hit["_source"]["number"])
        body["search_after"] = hits[-1]["sort"]


def forget() -> None:
    """Delete what was written."""
    patiently("DELETE", f"/{INDEX}", missing=True)


if __name__ == "__main__":
    {"write": write, "numbers": numbers, "forget": forget}[sys.argv[1]]()
