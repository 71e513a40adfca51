"""Customers who walk through the shop, by Vegeta: from another node, by HTTPS, the certificate verified."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import random
import signal
import subprocess
import sys
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# At the end: both have modules whose names others have too.
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
sys.path.append(str(Path(__file__).parents[1] / "firewall"))

from cluster import awaited
from go_programs import go_program
from traffic import AGENTS, COOKIES, SEARCHES

HOST, PORT = "shop.example.com", 30443
WALKS = 300  # that differ; then they are walked again
CONNECTIONS = 20  # of those who wait for their answer before they ask again
TIMEOUT = 10  # seconds for one request; what takes longer has failed
LONGEST = 900  # seconds after which a load ends by itself

Target = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """Where customers are, and the node that they ask."""

    node: str  # that one's name
    address: str
    other: str  # node where the customers are, by its name
    client: str  # and its address
    namespace: str  # and its network
    authority: Path  # who signs the shop's certificate


@dataclass(frozen=True)
class Served:
    """What became of a load's requests; times in milliseconds."""

    seconds: float
    times: list[float]
    failed: list[str]

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.times) / self.seconds

    def percentile(self, share: float) -> float:
        """The time in which this share of the requests was answered."""
        return sorted(self.times)[math.ceil(share * len(self.times)) - 1]

    def __str__(self) -> str:
        """One line."""
        return (
            f"{len(self.times)} requests in {self.seconds:.0f} s ({self.rate:.0f}/s), {len(self.failed)} failed; "
            f"p50 {self.percentile(0.5):.0f} ms, p99 {self.percentile(0.99):.0f} ms"
        )


def served(text: str) -> Served:
    """From Vegeta's CSV: whatever is not an answer of 2xx or 3xx is a failure.

    :raises ValueError: when nothing was sent.
    """
    begun, ended, times, failed = math.inf, -math.inf, [], []
    for sent, code, took, _, _, error, _, _, _, method, url, *_ in csv.reader(io.StringIO(text)):
        begun, ended = min(begun, int(sent)), max(ended, int(sent) + int(took))
        times.append(int(took) / 1e6)
        if not 200 <= int(code) < 400:
            failed.append(f"{code} {method} {url}: {error}")
    if not times:
        raise ValueError("no request was sent.")
    return Served((ended - begun) / 1e9, times, failed)


def walk(chosen: random.Random, products: list[str]) -> Iterator[Target]:
    """One customer: the front page, a search, a product, what an app asks the API, and a purchase."""
    product, word = chosen.choice(products), urllib.parse.quote_plus(chosen.choice(SEARCHES))
    headers = {"User-Agent": [chosen.choice(AGENTS)], "Accept-Language": ["de-DE,de;q=0.9,en;q=0.7"]}
    if cookie := chosen.choice(COOKIES):
        headers["Cookie"] = [cookie]
    paths = ("/", f"/search?q={word}", f"/products/{product}")
    paths += ("/api/products?limit=20", f"/api/search?q={word}", f"/api/products/{product}")
    for path in paths:
        yield {"method": "GET", "url": f"https://{HOST}:{PORT}{path}", "header": headers}
    body = base64.b64encode(json.dumps({"productId": product, "amount": 19.9}).encode()).decode()
    yield {
        "method": "POST",
        "url": f"https://{HOST}:{PORT}/api/payments",
        "header": headers | {"Content-Type": ["application/json"]},
        "body": body,
    }


class Customers:
    """A load on the shop. They come at a rate, whether those before them have been answered or not."""

    def __init__(self, entry: Entry, products: list[str], folder: Path) -> None:
        """Write down what they ask for, the same in every run.

        :param products: ids.
        """
        self.entry = entry
        self._program = go_program("vegeta")
        self._targets, self._answers = folder / "targets.json", folder / "answers"
        chosen = random.Random(1)
        targets = (target for _ in range(WALKS) for target in walk(chosen, products))
        self._targets.write_text("".join(f"{json.dumps(target)}\n" for target in targets), encoding="utf-8")

    def capacity(self, seconds: int) -> Served:
        """What is served to so many connections as fast as they are answered."""
        self._attack(0, seconds).wait()
        return self._served()

    def at(self, rate: int, seconds: int) -> Served:
        """What becomes of so many requests a second."""
        self._attack(rate, seconds).wait()
        return self._served()

    def during(self, action: Callable[[], Any], rate: int) -> Served:
        """What becomes of so many requests a second while an action runs; those under way at its end are waited for."""
        with self._attack(rate, LONGEST) as load:
            try:
                awaited(lambda: load.poll() is not None or self._begun(), 60, "the load begins")
                assert load.poll() is None, f"there is no load: Vegeta ended with {load.returncode}"
                action()
                assert load.poll() is None, f"the load ended before the action: {load.returncode}"
            finally:
                load.send_signal(signal.SIGINT)
        return self._served()

    def _begun(self) -> bool:
        return self._answers.exists() and self._answers.stat().st_size > 0

    def _attack(self, rate: int, seconds: int) -> subprocess.Popen[bytes]:
        self._answers.unlink(missing_ok=True)
        settings = {
            "format": "json",
            "targets": self._targets,
            "output": self._answers,
            "rate": rate,
            "duration": f"{seconds}s",
            "timeout": f"{TIMEOUT}s",
            "root-certs": self.entry.authority,
            "connect-to": f"{HOST}:{PORT}:{self.entry.address}:{PORT}",
            "http2": "false",  # else all customers would share one connection
            "max-body": 0,
            "prometheus-addr": "",
        }
        if not rate:
            settings |= {"workers": CONNECTIONS, "max-workers": CONNECTIONS}
        words = [str(self._program), "attack", *(f"-{name}={value}" for name, value in settings.items())]
        return subprocess.Popen(["ip", "netns", "exec", self.entry.namespace, *words])

    def _served(self) -> Served:
        words = [str(self._program), "encode", "-to=csv", str(self._answers)]
        return served(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
