"""Playbooks on a deployed platform: nothing changes, bad input is refused before anything happens."""

from __future__ import annotations

import pytest

TAGS = (
    *("preflight", "foundation", "namespaces", "admission", "network_policies", "secrets", "configuration"),
    *("datastores", "postgres", "redis", "elasticsearch", "applications"),
    *("monitoring", "alerts", "kube_state_metrics", "prometheus", "alertmanager", "grafana", "verify"),
)


def fingerprint(pods):
    """What changes where a pod is replaced or restarted."""
    return {
        pod["metadata"]["uid"]: [status["restartCount"] for status in pod["status"]["containerStatuses"]]
        for pod in pods
    }


def test_a_second_run_changes_nothing_and_restarts_no_pod(play, pods, kubectl):
    before = fingerprint(pods)
    done = play("site")
    assert done.rc == 0, done.stdout + done.stderr
    assert "changed=0" in done.stdout
    after = kubectl("get", "pods", "--namespace", "citadelbuy", "--output", "json")["items"]
    assert before.items() <= fingerprint(after).items()


def test_verify_prints_its_table(play):
    done = play("verify")
    assert done.rc == 0, done.stdout + done.stderr
    for text in ("a row in PostgreSQL", "X-Cache: hit", "found after", "gone from API, PostgreSQL, Redis, search"):
        assert text in done.stdout
    assert "FAILED" not in done.stdout


def test_verify_fails_with_every_failed_check(play):
    done = play("verify", "-e", "verify_page=/no-such-page")
    assert done.rc == 2
    assert "1 of 8 checks failed: page" in done.stdout + done.stderr
    done = play("verify", "-e", "platform_namespace=nowhere")
    assert "checks failed: pods, create" in done.stdout + done.stderr


@pytest.mark.parametrize("tag", TAGS)
def test_every_tag_alone(play, tag):
    done = play("site", "--tags", tag)
    assert done.rc == 0, done.stdout + done.stderr
    assert "changed=0" in done.stdout


@pytest.mark.parametrize("playbook", ["preflight", "foundation", "datastores", "applications", "monitoring", "verify"])
def test_every_layer_alone(play, playbook):
    done = play(playbook)
    assert done.rc == 0, done.stdout + done.stderr
    assert "changed=0" in done.stdout


def test_bad_input_changes_nothing(play, kubectl):
    def state():
        return kubectl("get", "statefulsets,deployments,configmaps", "--namespace", "citadelbuy", "--output", "yaml")

    before = state()
    done = play(
        "site", "-e", "redis_replicas=abc", "-e", "postgres_storage_sise=4Gi", "-e", "applications_api_max_replica=9"
    )
    assert done.rc == 2
    for text in (
        "Preflight found 3 problems",
        "redis_replicas",
        "postgres_storage_size?",
        "applications_api_max_replicas?",
    ):
        assert text in done.stdout + done.stderr
    assert state() == before


def test_an_image_that_does_not_exist_fails_within_seconds(play, kubectl):
    done = play("site", "--tags", "applications", "-e", "applications_web_image=citadelbuy.local/none:1")
    try:
        assert done.rc == 2
        assert "ErrImagePull" in done.stdout + done.stderr or "ImagePullBackOff" in done.stdout + done.stderr
        # Told as soon as it is known, not when the wait is over.
        assert "will not become ready" in done.stdout + done.stderr
        assert "not ready after" not in done.stdout + done.stderr
        web = kubectl("get", "deployment", "citadelbuy-web", "--namespace", "citadelbuy", "--output", "json")
        assert web["status"]["availableReplicas"] >= 1
    finally:
        repaired = play("site", "--tags", "applications")
    assert repaired.rc == 0, repaired.stdout + repaired.stderr
