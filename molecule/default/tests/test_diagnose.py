"""Diagnose on the deployed platform: broken pods are named with their causes, and what they say of secrets is not."""

from __future__ import annotations

import base64
import html
import json
import re
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import CHECKOUT, Json

sys.path.insert(0, str(CHECKOUT / "tests/tools"))

from confined_pod import confined_pod
from secret_search import Search

VALUE = secrets.token_urlsafe(24)
LEAKS = """
printf 'password %s\\n' "$LEAKED"; printf 'user:%s' "$LEAKED" | base64 -w0; echo
echo 'Error: environment variable DIAGNOSE_TEST not set'; exit 1
"""
CAUSES = {
    "diagnose-test-image": r"The image citadelbuy\.local/diagnose-test:0 cannot be pulled",
    "diagnose-test-crash": r"its variable DIAGNOSE_TEST is not set",
    "diagnose-test-probe": r"The readiness probe of container test of diagnose-test-probe fails",
    "diagnose-test-room": r"No node has room for a pod: too little cpu",
    "diagnose-test-network": r"diagnose-test-network does not reach redis: it is kept from it by a network policy",
}


def pod(name: str, image: str, script: str = "exec sleep 3600", **more: Any) -> Json:
    """A pod with a fault."""
    return confined_pod(f"diagnose-test-{name}", image, ["sh", "-c", script], labels={"app": "diagnose-test"}, **more)


@pytest.fixture(scope="module")
def broken(kubectl: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One pod for each fault, once Kubernetes has seen it; gone afterwards."""
    redis = kubectl("get", "pod", "redis-0", "--namespace", "citadelbuy", "--output", "json")["spec"]["containers"][0]
    service = kubectl("get", "service", "redis", "--namespace", "citadelbuy", "--output", "json")["spec"]
    address = f"{service['clusterIP']}:6379"
    leaked = {"name": "LEAKED", "valueFrom": {"secretKeyRef": {"name": "diagnose-test", "key": "VALUE"}}}
    call = f"while :; do timeout 2 redis-cli -h {service['clusterIP']} ping || echo connect ETIMEDOUT {address}; done"
    items = [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "diagnose-test", "namespace": "citadelbuy"},
            "data": {"VALUE": base64.b64encode(VALUE.encode()).decode()},
        },
        pod("image", "citadelbuy.local/diagnose-test:0"),
        pod("crash", redis["image"], LEAKS, env=[leaked]),
        pod("probe", redis["image"], readinessProbe={"tcpSocket": {"port": 9}, "periodSeconds": 1}),
        pod("room", redis["image"], cpu="1000"),
        pod("network", redis["image"], call, readinessProbe={"exec": {"command": ["false"]}, "periodSeconds": 1}),
    ]
    file = tmp_path_factory.mktemp("broken") / "pods.json"
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    try:
        kubectl("apply", "-f", str(file))
        deadline = time.monotonic() + 120
        while not shown(kubectl):
            assert time.monotonic() < deadline, "the pods did not break in 120 s"
            time.sleep(1)
        yield
    finally:
        kubectl("delete", "-f", str(file), "--ignore-not-found")


def shown(kubectl: Any) -> bool:
    """Whether each of the pods shows its fault: the crash twice, the probe and the call as said by the kubelet."""
    selector = ("--namespace", "citadelbuy", "--selector", "app=diagnose-test")
    states = {
        item["metadata"]["name"]: item["status"]
        for item in kubectl("get", "pods", *selector, "--output", "json")["items"]
    }
    waiting = json.dumps([item.get("containerStatuses") for item in states.values()])
    crash = (states["diagnose-test-crash"].get("containerStatuses") or [{}])[0]
    room = json.dumps(states["diagnose-test-room"].get("conditions"))
    if not ("ImagePull" in waiting and crash.get("restartCount", 0) > 1 and "Unschedulable" in room):
        return False
    events = kubectl("get", "events", "--namespace", "citadelbuy", "--output", "json")["items"]
    failing = {item["involvedObject"]["name"] for item in events if item["reason"] == "Unhealthy"}
    log = kubectl("logs", "diagnose-test-network", "--namespace", "citadelbuy")
    return {"diagnose-test-probe", "diagnose-test-network"} <= failing and "ETIMEDOUT" in log


@pytest.fixture(scope="module")
def diagnosis(play: Any, broken: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, str]]:
    """What the playbook says, and its report by kind."""
    folder = tmp_path_factory.mktemp("reports")
    done = play("diagnose", "-e", f"diagnose_report_dir={folder}")
    assert done.rc == 0, done.stdout + done.stderr
    return done, {file.suffix: file.read_text() for file in Path(folder).iterdir()}


@pytest.mark.parametrize("name", CAUSES)
def test_a_broken_pod_is_named_with_its_cause(diagnosis: tuple[Any, dict[str, str]], name: str) -> None:
    done, report = diagnosis
    for text in (done.stdout, report[".txt"]):
        found = re.search(rf"\d+\. .*{CAUSES[name]}[\s\S]*?where: Pod [^\n]*{name}", text)
        assert found, text
    assert re.search(CAUSES[name], html.unescape(report[".html"]))


def test_no_value_of_a_secret_is_in_the_report(diagnosis: tuple[Any, dict[str, str]], kubectl: Any) -> None:
    done, report = diagnosis
    values: dict[str, str | bytes] = {}
    for secret in kubectl("get", "secrets", "--namespace", "citadelbuy", "--output", "json")["items"]:
        for key, encoded in (secret.get("data") or {}).items():
            if key not in ("DATABASE_USER", "ELASTICSEARCH_USERNAME"):  # names of users
                values[f"{secret['metadata']['name']}/{key}"] = base64.b64decode(encoded)
    assert values["diagnose-test/VALUE"] == VALUE.encode()
    search = Search(values)
    search.text("standard output", done.stdout + done.stderr)
    for kind, text in report.items():
        search.text(kind, html.unescape(text))
    assert search.found == []
    assert "password *****" in report[".txt"]


def test_the_stores_have_answered(diagnosis: tuple[Any, dict[str, str]]) -> None:
    text = diagnosis[1][".txt"]
    for line in (
        r"^PostgreSQL \(postgres-\d\) +\d+ of \d+ connections",
        r"^Redis \(redis-\d\) +master, ",
        r"^Elasticsearch \(elasticsearch-\d\) +(green|yellow), ",
        r"^Readiness of citadelbuy-api-\S+ +/health/ready answers 200: postgres up",
        r"^calls +mean_ms ",
    ):
        assert re.search(line, text, re.MULTILINE), line
