"""Write to Elasticsearch without a rest, and note each document that was acknowledged; or tell those that are there.

`write`: a line a document in LOG (when it was acknowledged in seconds, its number, and the worst health of the cluster
since the line before) until the file STOP is there.
`numbers`: a line a document that the index has. `forget` deletes the index. DRILL_HOST says where, DRILL_OWNER who,
unless DRILL_SECRETS, a folder with ELASTICSEARCH_PASSWORD, has ELASTICSEARCH_USERNAME; DRILL_CA_FILE is whom it trusts;
DRILL_RATE is the documents a second to come to, by DRILL_CONNECTIONS connections.
"""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import os
import ssl
import sys
import threading
import time
from pathlib import Path
from typing import Any

LOG, STOP = Path("/work/log"), Path("/work/stop")
INDEX = "/drill"
TIMEOUT = 1.0  # seconds for an answer to a write
LONG = 30.0  # to another question, and until the store must be reachable
PAUSE = 0.25  # between tries to connect: without a rest they would take the time that the store needs
LOOK = 0.1  # between looks at the cluster's health
PAGE = 5000  # documents of an answer; Elasticsearch gives 10,000 at most


class Client:
    """One connection."""

    def __init__(self, timeout: float) -> None:
        secrets = Path(os.environ["DRILL_SECRETS"])
        name = secrets / "ELASTICSEARCH_USERNAME"
        user = name.read_text().strip() if name.exists() else os.environ["DRILL_OWNER"]
        login = f"{user}:{(secrets / 'ELASTICSEARCH_PASSWORD').read_text().strip()}"
        self.headers = {
            "Content-Type": "application/json",
            "Authorization": f"Basic {base64.b64encode(login.encode()).decode()}",
        }
        context = ssl.create_default_context(cafile=os.environ["DRILL_CA_FILE"])
        self.connection = http.client.HTTPSConnection(os.environ["DRILL_HOST"], 9200, timeout=timeout, context=context)

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """Status and answer.

        :raises OSError, http.client.HTTPException: there was none.
        """
        self.connection.request(method, path, None if body is None else json.dumps(body), self.headers)
        answer = self.connection.getresponse()
        return answer.status, json.loads(answer.read() or b"{}")


class Health:
    """The cluster's, by its master."""

    ORDER = ("", "green", "yellow", "red")

    def __init__(self) -> None:
        self.last = self.worst = ""

    def watch(self) -> None:
        """Look until told to stop; a look that is not answered says nothing."""
        client = None
        while not STOP.exists():
            try:
                client = client or Client(TIMEOUT)
                # The master's word: a member that starts or ends knows of no shard.
                status, answer = client.ask("GET", "/_cluster/health?master_timeout=500ms")
                if status == 200:
                    self.last = answer["status"]
                    self.worst = max(self.worst, self.last, key=self.ORDER.index)
            except (OSError, http.client.HTTPException, ValueError):
                client = None
            time.sleep(LOOK)

    def take(self) -> str:
        """The worst since it was taken last."""
        found, self.worst = self.worst or self.last, ""
        return found


def patiently(method: str, path: str, body: dict[str, Any] | None = None, good: tuple[int, ...] = (200,)) -> Any:
    """An answer with a good status, once there is one: a pod that is new waits for the network to let it through."""
    deadline = time.monotonic() + LONG
    while True:
        try:
            status, answer = Client(LONG).ask(method, path, body)
            if status in good:
                return answer
            said = f"{status} {answer}"
        except (OSError, http.client.HTTPException) as error:
            said = str(error)
        if time.monotonic() > deadline:
            sys.exit(f"Elasticsearch: {method} {path}: {said}")
        time.sleep(PAUSE)


def write() -> None:
    """Until told to stop."""
    forget()
    patiently("PUT", INDEX, {"settings": {"number_of_shards": 1, "auto_expand_replicas": "0-1"}})
    patiently("GET", f"/_cluster/health{INDEX}?wait_for_status=green&timeout=25s")
    writers = int(os.environ["DRILL_CONNECTIONS"])
    numbers, log, health = itertools.count(), LOG.open("w", buffering=1), Health()
    threads = [
        threading.Thread(target=write_on_one, args=(numbers, writers / float(os.environ["DRILL_RATE"]), log, health))
        for _ in range(writers)
    ]
    threads.append(threading.Thread(target=health.watch))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def write_on_one(numbers: itertools.count[int], each: float, log: Any, health: Health) -> None:
    """By one connection at a time, a document every so many seconds; one whose fate is unknown is left alone."""
    client, due = None, time.monotonic()
    while not STOP.exists():
        try:
            client = client or Client(TIMEOUT)
            number = next(numbers)
            status, _answer = client.ask("PUT", f"{INDEX}/_doc/{number}", {"number": number})
            if status in (200, 201):
                print(f"{time.time():.4f} {number} {health.take()}", file=log)
            else:
                client = None
        except (OSError, http.client.HTTPException, ValueError):
            client = None
            time.sleep(PAUSE)
        due = max(due + each, time.monotonic() - each)
        time.sleep(max(due - time.monotonic(), 0))


def numbers() -> None:
    """All that are there."""
    patiently("POST", f"{INDEX}/_refresh")
    body: dict[str, Any] = {"size": PAGE, "sort": ["number"], "track_total_hits": False}
    while hits := patiently("POST", f"{INDEX}/_search?allow_partial_search_results=false", body)["hits"]["hits"]:
        print("\n".join(str(hit["_source"]["number"]) for hit in hits))
        body["search_after"] = hits[-1]["sort"]


def forget() -> None:
    """Delete the index."""
    patiently("DELETE", INDEX, good=(200, 404))


if __name__ == "__main__":
    {"write": write, "numbers": numbers, "forget": forget}[sys.argv[1]]()
