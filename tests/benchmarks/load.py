"""Load on the API as a shop's customers make it: by Vegeta, from the node's network, on products of its own."""

from __future__ import annotations

import base64
import csv
import io
import json
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from go_programs import go_program
from in_cluster import awaited, kubectl, sql
from pairing import BenchmarkError, run

NODE = "citadelbuy.node1"
MIX = {"browse": 40, "product": 30, "search": 20, "order": 10}  # of a hundred requests
PRODUCTS = 500
REQUESTS = 5000  # that differ; then they are repeated
CONNECTIONS = 4
TIMEOUT = 10  # seconds for one request
LONGEST = 900  # seconds after which a load ends by itself
WORDS = ("amber", "birch", "copper", "dune", "ember", "fern", "granite", "harbour", "indigo", "jade")
OURS = "name LIKE 'Benchmark %'"


@dataclass
class Served:
    """What was answered in some time: how often a second, and how long each answer took, in milliseconds."""

    rate: float
    times: list[float]


@contextmanager
def products() -> Iterator[list[str]]:
    """Products to load the API with, all of them found by search; their ids. They are gone afterwards."""
    _remove()
    try:
        words = f"(ARRAY{list(WORDS)})"
        sql(
            "INSERT INTO products (id, name, description, price) SELECT gen_random_uuid(), "
            f"'Benchmark ' || n || ' ' || {words}[1 + n % {len(WORDS)}], repeat('Good for that. ', 14), 1 + n % 90 "
            f"FROM generate_series(1, {PRODUCTS}) n"
        )
        indexed = f"SELECT count(*) FROM products WHERE {OURS} AND indexed_at IS NULL"
        awaited(lambda: sql(indexed) == "0", "the API indexes new products")
        yield sql(f"SELECT id FROM products WHERE {OURS} ORDER BY id").split()
    finally:
        _remove()


def _remove() -> None:
    """Delete the products as the API does: a row goes once search and cache have forgotten it."""
    sql(
        f"DELETE FROM payments WHERE product_id IN (SELECT id FROM products WHERE {OURS}); UPDATE products SET "
        f"deleted_at = now(), indexed_at = NULL, version = version + 1 WHERE {OURS} AND deleted_at IS NULL"
    )
    awaited(lambda: sql(f"SELECT count(*) FROM products WHERE {OURS}") == "0", "the API removes deleted products")


class Load:
    """Customers who ask for the next thing once they have been answered, one a connection."""

    def __init__(self, identities: list[str], folder: Path) -> None:
        """Write down what is asked for, the same in every run.

        :param identities: of the products.
        """
        self._program = go_program("vegeta")
        self._requests, self._answers = folder / "requests.json", folder / "answers"
        address = kubectl("get", "service", "citadelbuy-api", "--output=jsonpath={.spec.clusterIP}")
        chosen = random.Random(1)
        kinds = chosen.choices(list(MIX), list(MIX.values()), k=REQUESTS)
        lines = [_request(kind, f"http://{address}:3000/api", chosen.choice(identities), chosen) for kind in kinds]
        self._requests.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")

    def during(self, action: Callable[[], Any]) -> Served:
        """What was served while an action ran.

        :raises BenchmarkError: a request failed, or the load ended before the action.
        """
        settings = {
            "format": "json",
            "targets": self._requests,
            "output": self._answers,
            "rate": 0,  # as many as are answered
            "workers": CONNECTIONS,
            "max-workers": CONNECTIONS,
            "timeout": f"{TIMEOUT}s",
            "duration": f"{LONGEST}s",
            "max-body": 0,
        }
        words = [self._program, "attack", *(f"-{name}={value}" for name, value in settings.items())]
        with subprocess.Popen(["ip", "netns", "exec", NODE, *words]) as load:
            try:
                begun = time.time()
                action()
                ended = time.time()
                if load.poll() is not None:
                    raise BenchmarkError(f"the load ended by itself ({load.returncode}), after {ended - begun:.0f} s.")
            finally:
                load.send_signal(signal.SIGINT)  # what is under way is still answered
        return self._served(begun, ended)

    def _served(self, begun: float, ended: float) -> Served:
        text = run([self._program, "encode", "-to=csv", self._answers])
        rows = [(int(sent), int(code), int(took), error) for sent, code, took, _, _, error, *_ in _rows(text)]
        failed = [f"{code} {error}" for _, code, _, error in rows if not 200 <= code < 300]
        if failed:
            raise BenchmarkError(f"{len(failed)} of {len(rows)} requests failed, such as: {failed[0]}.")
        times = [took / 1e6 for sent, _, took, _ in rows if begun <= (sent + took) / 1e9 <= ended]
        return Served(len(times) / (ended - begun), times)


def _rows(text: str) -> Iterator[list[str]]:
    return csv.reader(io.StringIO(text))


def _request(kind: str, api: str, product: str, chosen: random.Random) -> dict[str, Any]:
    """One of the mix, as Vegeta reads it."""
    match kind:
        case "browse":
            return {"method": "GET", "url": f"{api}/products?limit=20&offset={20 * chosen.randrange(10)}"}
        case "product":
            return {"method": "GET", "url": f"{api}/products/{product}"}
        case "search":
            return {"method": "GET", "url": f"{api}/search?q={chosen.choice(WORDS)}"}
        case _:
            body = base64.b64encode(json.dumps({"productId": product, "amount": 10}).encode()).decode()
            header = {"Content-Type": ["application/json"]}
            return {"method": "POST", "url": f"{api}/payments", "header": header, "body": body}
