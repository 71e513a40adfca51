"""The proof of a deployment: a product's way through web, API, PostgreSQL, Redis and Elasticsearch."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import Cluster, EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.report import is_ready
from ansible_collections.citadelbuy.platform.plugins.module_utils.stream import Reply, http_through_pod, run_in_pod

Body = dict[str, Any]
OK, FAILED, WARNING, PENDING, SKIPPED = "ok", "FAILED", "warning", "pending", "skipped"
PAUSE = 0.2  # seconds between looks
FIRST_METRICS = 90  # seconds after which an autoscaler has metrics of a new pod
SETTLE = 10.0  # seconds that a copy (page, cache, replica, deletion) may lag behind
UNREACHED = (502, 503, 504)  # the web's answers while it does not reach the API

# The id is a psql variable, so that it is quoted; soft deletion counts as deletion.
COUNT_ROWS = "SELECT count(*) FROM products p WHERE p.id::text = :'id' AND to_jsonb(p)->>'deleted_at' IS NULL"
PSQL = 'printf %s "$2" | exec psql -X -A -t -v ON_ERROR_STOP=1 -v id="$1" -U "$POSTGRES_USER" -d "$POSTGRES_DB"'
REDIS = (
    'REDISCLI_AUTH="$(cat /etc/citadelbuy/secrets/REDIS_PASSWORD)" '
    'exec redis-cli -s /run/redis/redis.sock EXISTS "product:$1"'
)

PLAN = (
    ("pods", "every pod of the platform is ready"),
    ("autoscalers", "every autoscaler reads its metrics"),
    ("create", "a product is created through the web's /api/products"),
    ("postgres", "it is a row in PostgreSQL"),
    ("redis", "read twice, the second answer comes from Redis"),
    ("search", "search finds it"),
    ("page", "the web's page shows it"),
    ("delete", "deleted, it is gone from API, PostgreSQL, Redis and search"),
)


class CheckError(Exception):
    """What a check saw instead of what it should."""


class TooEarly(CheckError):
    """What cannot be told yet."""


@dataclass
class Row:
    """One line of the table."""

    check: str
    result: str
    detail: str
    ms: int = 0


class Smoke:
    """All checks of one platform. `run` leaves nothing behind, whatever fails."""

    def __init__(self, cluster: Cluster, namespaces: list[str], search_timeout: float = 10, page: str = "/") -> None:
        self.cluster = cluster
        self.namespaces = namespaces
        self.namespace = namespaces[0]
        self.search_timeout = search_timeout
        self.page = page
        self.pods: list[Body] = []
        self.product = ""
        self.name = f"Verify {secrets.token_hex(6)}"

    def run(self) -> list[Row]:
        """Run every check; those that build on a failed one are skipped."""
        rows = [self._row("pods", self._pods), self._row("autoscalers", self._autoscalers, soft=True)]
        try:
            rows.append(self._row("create", self._create))
            later = {"postgres": self._postgres, "redis": self._redis, "search": self._search, "page": self._page}
            if self.product:
                with ThreadPoolExecutor(len(later)) as pool:
                    futures = [pool.submit(self._row, name, check) for name, check in later.items()]
                    rows += [future.result() for future in futures]
            else:
                rows += [Row(name, SKIPPED, "there is no product to look for") for name in later]
        finally:
            rows.append(
                self._row("delete", self._delete)
                if self.product
                else Row("delete", SKIPPED, "there is no product to delete")
            )
        return rows

    def _row(self, name: str, check: Callable[[], str], soft: bool = False) -> Row:
        begun = time.monotonic()
        try:
            result, detail = OK, check()
        except TooEarly as error:
            result, detail = PENDING, str(error)
        except (CheckError, EngineError) as error:
            result, detail = WARNING if soft else FAILED, " ".join(str(error).split())
        return Row(name, result, detail, round((time.monotonic() - begun) * 1000))

    def _pods(self) -> str:
        """All pods of the platform's namespaces but those of Jobs and those that are going."""
        waiting = []
        for namespace in self.namespaces:
            items = self.cluster.request("GET", f"/api/v1/namespaces/{namespace}/pods")[1].get("items") or []
            self.pods += [
                pod
                for pod in items
                if not pod["metadata"].get("deletionTimestamp")
                and not any(owner["kind"] == "Job" for owner in pod["metadata"].get("ownerReferences") or [])
                and (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")
            ]
        for pod in self.pods:
            if not is_ready(pod):
                waiting.append(pod["metadata"]["name"])
        if waiting:
            raise CheckError(f"not ready: {', '.join(waiting)}; see `kubectl -n {self.namespace} describe pod`")
        if not self.pods:
            raise CheckError(f"no pod runs in {', '.join(self.namespaces)}: deploy with playbooks/site.yml")
        return f"{len(self.pods)} pods ready"

    def _autoscalers(self) -> str:
        path = f"/apis/autoscaling/v2/namespaces/{self.namespace}/horizontalpodautoscalers"
        items = self.cluster.request("GET", path)[1].get("items") or []
        blind = []
        for item in items:
            conditions = {entry["type"]: entry for entry in (item.get("status") or {}).get("conditions") or []}
            active = conditions.get("ScalingActive", {"status": "Unknown", "reason": "not looked at yet"})
            if active["status"] != "True" and active.get("reason") != "ScalingDisabled":
                blind.append(f"{item['metadata']['name']} ({active.get('reason')})")
        if blind and any(self._age(pod) < FIRST_METRICS for pod in self.pods):
            raise TooEarly(f"pods are younger than {FIRST_METRICS} s, metrics come")
        if blind:
            raise CheckError(f"no metrics: {', '.join(blind)}")
        return f"{len(items)} autoscalers read CPU and memory"

    def _age(self, pod: Body) -> float:
        """Seconds since a pod was made, by the cluster's clock."""
        made = datetime.fromisoformat(pod["metadata"]["creationTimestamp"].replace("Z", "+00:00"))
        return time.time() + self.cluster.clock_offset - made.timestamp()

    def _pod(self, tier: str) -> str:
        """A ready pod of a tier, not a canary's; of PostgreSQL's the one that takes writes."""
        labelled = [(pod, pod["metadata"].get("labels") or {}) for pod in self.pods]
        found = [pod for pod, labels in labelled if labels.get("tier") == tier and "citadelbuy.io/track" not in labels]
        ready = sorted((pod for pod in found if is_ready(pod)), key=lambda pod: pod["metadata"]["name"])
        if not ready:
            raise CheckError(f"no ready pod with the label tier={tier} in {self.namespace}")
        primary = [pod for pod in ready if pod["metadata"]["labels"].get("role") in ("master", "primary")]
        return str((primary or ready)[0]["metadata"]["name"])

    def _ask(self, method: str, path: str, body: Any = None) -> Reply:
        return http_through_pod(self.cluster, self.namespace, self._pod("web"), 3000, method, path, body)

    def _web(self, method: str, path: str, body: Any = None, expect: tuple[int, ...] = (200,)) -> Reply:
        reply = self._ask(method, path, body)
        if reply.status not in expect:
            text = " ".join(reply.text.split())[:200]
            raise CheckError(f"{method} {path} answered {reply.status}: {text}")
        return reply

    def _create(self) -> str:
        # A pod that has just become ready is reached through its Service once kube-proxy has heard of it.
        begun = time.monotonic()
        _until(lambda: self._ask("GET", "/api/products?limit=1").status not in UNREACHED, SETTLE)
        waited = time.monotonic() - begun
        product = {"name": self.name, "description": "made by verify, removed at once", "price": 1.25}
        answer = self._web("POST", "/api/products", product, expect=(200, 201)).json()
        if not isinstance(answer, dict) or not answer.get("id"):
            raise CheckError("POST /api/products answered without an id")
        self.product = str(answer["id"])
        return f"product {self.product}" + (f", the API was reached after {waited:.1f} s" if waited > 1 else "")

    def _rows(self) -> int:
        command = ["sh", "-c", PSQL, "sh", self.product, COUNT_ROWS]
        answer = run_in_pod(self.cluster, self.namespace, self._pod("database"), "postgres", command).strip()
        if not answer.isdigit():
            raise CheckError(f"psql answered {answer[:100]!r}")
        return int(answer)

    def _cached(self) -> bool:
        command = ["sh", "-c", REDIS, "sh", self.product]
        answer = run_in_pod(self.cluster, self.namespace, self._pod("cache"), "redis", command).strip()
        if answer not in ("0", "1"):
            raise CheckError(f"redis-cli answered {answer[:100]!r}")
        return answer == "1"

    def _hits(self) -> bool:
        items = self._web("GET", f"/api/search?q={quote(self.name)}", expect=(200,)).json()
        return self.product in json.dumps(items)

    def _postgres(self) -> str:
        count = self._rows()
        if count != 1:
            raise CheckError(f"{count} rows in products for {self.product}, not 1")
        return f"1 row in products, seen in pod {self._pod('database')}"

    def _redis(self) -> str:
        path = f"/api/products/{self.product}"
        self._web("GET", path)
        second = self._web("GET", path)
        said = second.headers.get("X-Cache", "none")
        if said.lower() != "hit":
            raise CheckError(f"the second GET {path} has X-Cache: {said}, not hit")
        if (second.json() or {}).get("name") != self.name:
            raise CheckError(f"the second GET {path} is not the product that was created")
        if not _until(self._cached, SETTLE):  # the pod may be a replica
            raise CheckError(f"Redis has no key product:{self.product}, though the API says X-Cache: hit")
        return f"X-Cache: hit, key in pod {self._pod('cache')}"

    def _search(self) -> str:
        begun = time.monotonic()
        if not _until(self._hits, self.search_timeout):
            raise CheckError(f"not found within {self.search_timeout:g} s")
        return f"found after {time.monotonic() - begun:.1f} s"

    def _page(self) -> str:
        if not _until(lambda: self.name in self._web("GET", self.page).text, SETTLE):
            raise CheckError(f"GET {self.page} does not contain {self.name!r}")
        return f"GET {self.page} contains {self.name!r}"

    def _delete(self) -> str:
        path = f"/api/products/{self.product}"
        self._web("DELETE", path, expect=(200, 202, 204))

        def in_api() -> bool:
            return self._web("GET", path, expect=(200, 404, 410)).status == 200

        places: dict[str, Callable[[], Any]] = {
            "API": in_api,
            "PostgreSQL": self._rows,
            "Redis": self._cached,
            "search": self._hits,
        }

        def remains(look: Callable[[], Any]) -> str:
            try:
                return "" if _until(lambda: not look(), SETTLE) else "still there"
            except (CheckError, EngineError) as error:
                return f"cannot tell: {error}"

        with ThreadPoolExecutor(len(places)) as pool:
            left = {place: text for place, text in zip(places, pool.map(remains, places.values()), strict=True) if text}
        if left:
            raise CheckError("; ".join(f"{place}: {text}" for place, text in left.items()))
        return f"gone from {', '.join(places)}"


def _until(look: Callable[[], bool], timeout: float) -> bool:
    """Look until it is true or the time is over."""
    end = time.monotonic() + timeout
    while not look():
        if time.monotonic() > end:
            return False
        time.sleep(PAUSE)
    return True


def table(rows: list[Row]) -> str:
    """The rows as text, columns aligned."""
    titles = dict(PLAN)
    cells = [("check", "result", "ms", "detail")]
    cells += [(titles[row.check], row.result, str(row.ms), row.detail) for row in rows]
    first, second, third = (max(len(line[column]) for line in cells) for column in range(3))
    return "\n".join(f"{a:<{first}}  {b:<{second}}  {c:>{third}}  {d}".rstrip() for a, b, c, d in cells)
