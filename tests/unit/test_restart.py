"""A restart by hand: new pods, and a next run that leaves them alone. On a real API server."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ansible_collections.citadelbuy.platform.plugins.module_utils import rollback
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import Cluster
from ansible_collections.citadelbuy.platform.plugins.module_utils.lease import Lease
from ansible_collections.citadelbuy.platform.plugins.module_utils.restart import RESTARTED_AT
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import progress, targets_of
from conftest import ApiServer, Deployer, Played, actions
from test_wait import Kubelet, running, waiting

APPLICATION = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: "{{ name }}", namespace: "{{ ns }}"}
spec:
  replicas: 2
  selector: {matchLabels: {app: "{{ name }}"}}
  template:
    metadata: {labels: {app: "{{ name }}"}}
    spec: {containers: [{name: main, image: "{{ image | default('app:1') }}"}]}
---
"""
APPLICATIONS = APPLICATION.replace("{{ name }}", "api") + APPLICATION.replace("{{ name }}", "web")
STORE = """
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: postgres
  namespace: "{{ ns }}"
  annotations: {citadelbuy.io/{{ note | default("none") }}: hand-over}
spec:
  serviceName: postgres
  replicas: 2
  selector: {matchLabels: {app: postgres}}
  template:
    metadata: {labels: {app: postgres}}
    spec: {containers: [{name: main, image: "postgres:1"}]}
"""
API, WEB, POSTGRES = "deployments/api", "deployments/web", "statefulsets/postgres"
Live = Callable[[str], dict[str, Any]]
Play = Callable[..., Played]


@pytest.fixture
def broken() -> set[str]:
    """Names of workloads whose new pods crash from now on."""
    return set()


@pytest.fixture
def deployed(
    deploy: Deployer, broken: set[str], live: Live, eventually: Callable[..., None]
) -> Iterator[Callable[..., list[str]]]:
    """Deploy applications and a store, and have their pods become ready."""
    crash = waiting("CrashLoopBackOff", restarts=9)

    def status(pod: dict[str, Any]) -> dict[str, Any]:
        return crash(pod) if pod["metadata"]["labels"]["app"] in broken else running(pod)

    kubelet = Kubelet(deploy.cluster, deploy.namespace, status)
    kubelet.start()

    def run(**variables: Any) -> list[str]:
        done = actions(deploy(APPLICATIONS, role="applications", **variables))
        done += actions(deploy(STORE, role="postgres", **variables))
        if not broken:
            eventually(lambda: all(progress(live(f"apis/apps/v1:{path}"))[0] for path in (API, WEB, POSTGRES)))
        return done

    yield run
    kubelet.stopped.set()
    kubelet.join()


@pytest.fixture
def play(run_playbook: Play) -> Play:
    """Run playbooks/restart.yml."""
    return lambda *arguments, **variables: run_playbook("playbooks/restart.yml", *arguments, **variables)


@pytest.fixture
def pods(cluster: Cluster, namespace: str) -> Callable[[str], set[str]]:
    """The pods of a workload that stay, by uid."""

    def read(name: str) -> set[str]:
        found = cluster.request("GET", f"/api/v1/namespaces/{namespace}/pods", query={"labelSelector": f"app={name}"})
        bodies = [body for body in found[1]["items"] if not body["metadata"].get("deletionTimestamp")]
        return {body["metadata"]["uid"] for body in bodies}

    return read


def restarted(live: Live, path: str) -> str:
    """When, by the annotation."""
    template = live(f"apis/apps/v1:{path}")["spec"]["template"]
    return (template["metadata"].get("annotations") or {}).get(RESTARTED_AT, "")


def test_new_pods_and_the_next_run_leaves_them(deployed: Callable, play: Play, live: Live, pods: Callable) -> None:
    deployed()
    before = {name: pods(name) for name in ("api", "web", "postgres")}
    text, counts = play("--check", "--diff", restart_application="api")
    assert counts["changed"] == "1", text
    assert "api: 2 pods would be replaced" in text
    assert f"+ {RESTARTED_AT}: " in text
    assert restarted(live, API) == ""
    text, counts = play(restart_application="api, web")
    assert counts["changed"] == "1", text
    assert "api: restarted, 2 pods new and ready after" in text
    assert text.index("/api: restarted") < text.index("/web: restarted")
    now = {name: pods(name) for name in before}
    assert [len(now[name]) for name in before] == [2, 2, 2]
    assert not now["api"] & before["api"]
    assert not now["web"] & before["web"]
    assert now["postgres"] == before["postgres"]
    when, generation = restarted(live, API), live(f"apis/apps/v1:{API}")["metadata"]["generation"]
    assert deployed() == ["unchanged"] * 3
    assert live(f"apis/apps/v1:{API}")["metadata"]["generation"] == generation
    assert pods("api") == now["api"]
    assert deployed(image="app:2") == ["changed", "changed", "unchanged"]
    assert restarted(live, API) == when


def test_a_store_needs_a_word(deployed: Callable, play: Play, live: Live, pods: Callable) -> None:
    deployed()
    before = pods("postgres")
    text, counts = play(restart_application="api,postgres")
    assert counts["failed"] == "1", text
    assert "postgres (2 pods): pods with data would be replaced" in text
    assert "the same with -e restart_confirm=true" in text
    assert restarted(live, API) == restarted(live, POSTGRES) == ""
    text, counts = play(restart_application="postgres", restart_confirm=True)
    assert counts["changed"] == "1", text
    assert len(pods("postgres")) == 2
    assert not pods("postgres") & before
    assert deployed() == ["unchanged"] * 3


def test_a_store_is_not_rolled_where_what_comes_first_fails(
    deployed: Callable, play: Play, live: Live, pods: Callable
) -> None:
    deployed(note="before-roll")
    before = pods("postgres")
    text, counts = play("--check", restart_application="postgres")
    assert counts["failed"] == "0", text
    assert "2 pods would be replaced; `hand-over` would run in one of its pods first" in text
    # There is no kubelet to run it.
    text, counts = play(restart_application="postgres,web", restart_confirm=True)
    assert counts["failed"] == "1", text
    assert "its pods are left as they are, for `hand-over` has to run in one of them first" in text
    assert "web." in text[text.index("Not restarted: Deployment") :]
    assert restarted(live, POSTGRES) == restarted(live, WEB) == ""
    assert pods("postgres") == before


def test_the_first_that_does_not_come_ends_it(
    deployed: Callable, play: Play, live: Live, broken: set[str], cluster: Cluster
) -> None:
    deployed()
    broken.add("api")
    text, counts = play(restart_application="web,api,postgres", restart_confirm=True)
    assert counts["failed"] == "1", text
    assert "CrashLoopBackOff" in text
    assert "web: restarted, 2 pods new and ready" in text
    assert "postgres." in text[text.index("Not restarted: StatefulSet") :]
    assert restarted(live, POSTGRES) == ""
    # The pods of before serve on; what undoes releases undoes this too, and the next run has nothing to do.
    (line,) = rollback.undo_failed(cluster, targets_of([live(f"apis/apps/v1:{API}")]), 30)
    assert "rolled back to revision 1 (app:1)" in line
    assert restarted(live, API) == ""
    assert deployed() == ["unchanged"] * 3


def test_two_at_once_are_one(deployed: Callable, play: Play, live: Live, cluster: Cluster, namespace: str) -> None:
    deployed()
    with Lease(cluster, namespace, "restart", "A restart"):
        text, counts = play(restart_application="api")
    assert counts["failed"] == "1", text
    assert f"A restart of {namespace} is under way" in text
    assert restarted(live, API) == ""


def test_what_is_refused(deployed: Callable, play: Play, live: Live, cluster: Cluster, namespace: str) -> None:
    deployed()
    path = f"/apis/apps/v1/namespaces/{namespace}/{WEB}"
    cluster.request("PATCH", path, {"spec": {"paused": True}}, content="application/merge-patch+json")
    for variables, told in [
        ({}, "restart_application is empty: name what to restart. There are: api, postgres, web."),
        ({"restart_application": "api,shop"}, "no Deployment or StatefulSet shop in"),
        ({"restart_application": "api,web"}, "web is paused, so its pods would not be replaced"),
    ]:
        text, counts = play(**variables)
        assert counts["failed"] == "1", text
        assert told in text
        assert "Traceback" not in text
    assert restarted(live, API) == ""


def test_kubectl_restarts_in_the_same_way(
    deployed: Callable, play: Play, live: Live, api_server: ApiServer, namespace: str
) -> None:
    deployed()
    kubectl = [api_server.bin / "kubectl", "--kubeconfig", api_server.kubeconfig, "-n", namespace]
    subprocess.run([*kubectl, "rollout", "restart", "deployment/api"], check=True, env=os.environ)
    theirs = restarted(live, API)
    assert theirs
    text, counts = play(restart_application="api")
    assert counts["changed"] == "1", text
    assert deployed() == ["unchanged"] * 3


def test_a_rollback_looks_past_a_restart(deployed: Callable, play: Play, live: Live, cluster: Cluster) -> None:
    deployed(image="app:1")
    deployed(image="app:2")
    assert play(restart_application="api")[1]["changed"] == "1"
    body = live(f"apis/apps/v1:{API}")
    known = rollback.revisions(cluster, body)
    assert [(item.number, item.current, item.same) for item in known] == [
        (1, False, False),
        (2, False, True),
        (3, True, True),
    ]
    chosen = rollback.choose(body, known, None)
    assert chosen.number == 1
    dry = rollback.undo(cluster, body, chosen, dry=True)
    assert dry["spec"]["template"]["spec"]["containers"][0]["image"] == "app:1"
    assert RESTARTED_AT not in str(dry["spec"]["template"])
    rollback.undo(cluster, body, chosen)
    assert restarted(live, API) == ""
    deployed(image="app:1")
    assert deployed(image="app:1") == ["unchanged"] * 3
    assert len(rollback.revisions(cluster, live(f"apis/apps/v1:{API}"))) == 3


def test_a_restart_that_is_gone_back_to_is_not_rolled_by_the_next_run(
    deployed: Callable, play: Play, live: Live, cluster: Cluster
) -> None:
    deployed(image="app:1")
    assert play(restart_application="api")[1]["changed"] == "1"
    when = restarted(live, API)
    for number, expected in ((1, ""), (2, when)):
        body = live(f"apis/apps/v1:{API}")
        rollback.undo(cluster, body, rollback.choose(body, rollback.revisions(cluster, body), number))
        generation = live(f"apis/apps/v1:{API}")["metadata"]["generation"]
        assert deployed(image="app:1")[0] == "unchanged"
        assert live(f"apis/apps/v1:{API}")["metadata"]["generation"] == generation
        assert restarted(live, API) == expected
