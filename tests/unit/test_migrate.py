"""A migration by hand: the role's own Job, once, and its log. On a real API server; the test is the kubelet."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import Cluster
from conftest import Played
from test_wait import Gate, Kubelet, container

PASSWORD = "correct-horse-battery"
LOG = f"login as {PASSWORD}\napplied 0003_prices.sql (12 ms)\n1 migration(s) applied, 3 in place\n"
Play = Callable[..., Played]


def ended(code: int) -> dict[str, Any]:
    """A pod status as of a migration that has ended."""
    state = {"terminated": {"exitCode": code, "reason": "Error" if code else "Completed"}}
    status = [container(state=state) | {"name": "migration"}]
    return {"phase": "Failed" if code else "Succeeded", "containerStatuses": status}


@pytest.fixture
def code() -> list[int]:
    """How migrations end: the last one counts."""
    return [0]


@pytest.fixture
def play(
    run_playbook: Play, cluster: Cluster, namespace: str, code: list[int], tmp_path: Path
) -> Iterator[Callable[..., Played]]:
    """Run playbooks/migrate.yml, on a cluster whose kubelets answer with a log."""
    secret = {"metadata": {"name": "citadelbuy-secrets"}, "data": {"KEY": base64.b64encode(PASSWORD.encode()).decode()}}
    cluster.request("POST", f"/api/v1/namespaces/{namespace}/secrets", secret)
    gate = Gate(cluster)
    gate.turn = lambda path: (200, LOG) if "/log?" in path else path
    kubeconfig = gate.kubeconfig(tmp_path)
    kubelet = Kubelet(cluster, namespace, lambda _pod: ended(code[-1]))
    kubelet.start()

    def run(*arguments: str, **variables: Any) -> Played:
        variables = {"applications_priority_class": "", "applications_migration_retries": 0} | variables
        return run_playbook("playbooks/migrate.yml", *arguments, kubeconfig=kubeconfig, **variables)

    yield run
    kubelet.stopped.set()
    kubelet.join()
    gate.shutdown()
    gate.server_close()


@pytest.fixture
def jobs(cluster: Cluster, namespace: str) -> Callable[[], dict[str, str]]:
    """The Jobs there are: uid by name."""

    def read() -> dict[str, str]:
        found = cluster.request("GET", f"/apis/batch/v1/namespaces/{namespace}/jobs")[1]["items"]
        return {body["metadata"]["name"]: body["metadata"]["uid"] for body in found}

    return read


def test_once_and_with_its_log(play: Play, jobs: Callable[[], dict[str, str]]) -> None:
    text, counts = play("--check")
    assert counts["failed"] == "0", text
    assert "citadelbuy-api-migrate-" in text
    assert "would run." in text
    assert jobs() == {}
    text, counts = play(applications_migration_enabled=False)  # that is about site.yml
    assert counts["failed"] == "0", text
    [name] = first = jobs()
    assert f"{name} ran: complete since 20" in text
    assert "applied 0003_prices.sql (12 ms)" in text
    assert "login as *****" in text
    assert PASSWORD not in text
    text, counts = play()
    assert counts["changed"] == counts["failed"] == "0", text
    assert f"{name} had run already, and was not run again: complete since 20" in text
    assert "applied 0003_prices.sql (12 ms)" in text
    assert jobs() == first
    text, counts = play(applications_api_image="api:2")
    assert counts["failed"] == "0", text
    assert len(jobs()) == 1
    assert jobs() != first


def test_a_failed_one_is_told_with_its_log_and_tried_again(
    play: Play, jobs: Callable[[], dict[str, str]], code: list[int]
) -> None:
    code.append(1)
    text, counts = play()
    assert counts["failed"] == "1", text
    assert "will not become ready" in text
    assert "applied 0003_prices.sql (12 ms)" in text
    assert "API and web front end were left as they were." in text
    assert PASSWORD not in text
    first = jobs()
    code.append(0)
    text, counts = play()
    assert counts["failed"] == "0", text
    assert " ran: complete since 20" in text
    assert jobs().keys() == first.keys()
    assert jobs() != first


def test_two_operators_have_one_job(play: Play, cluster: Cluster, namespace: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda _number: play(), range(2)))
    for text, counts in runs:
        assert counts["failed"] == "0", text
        assert "complete since 20" in text
    events = cluster.request("GET", f"/api/v1/namespaces/{namespace}/pods")[1]["items"]
    assert len(events) == 1, json.dumps(events)


def test_a_canary_is_migrated_beside_and_not_again_when_it_is_promoted(
    play: Play, jobs: Callable[[], dict[str, str]]
) -> None:
    play(applications_api_image="api:1")
    first = jobs()
    text, counts = play(applications_api_image="api:1", platform_canary_api_image="api:2")
    assert counts["failed"] == "0", text
    (canary,) = jobs().keys() - first.keys()
    assert first.items() <= jobs().items()
    assert f"{next(iter(first))} had run already, and was not run again" in text
    assert f"{canary} ran: complete since 20" in text
    both = jobs()
    text, counts = play(applications_api_image="api:2")
    assert counts["failed"] == "0", text
    assert f"{canary} had run already, and was not run again" in text
    assert jobs() == {canary: both[canary]}
