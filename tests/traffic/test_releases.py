"""Two operators at once, and releases that do not come: the old version serves all the while, and comes back whole."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

from cluster import API, API_ENVIRONMENT, ROOT, WEB, attempt, command, get, playbook, release, settled, template
from shop import Customers

APPLICATIONS = ("site", "--tags", "configuration,applications")
# A store that is not there: the pods run, and are not ready.
NOT_READY: dict[str, Any] = {
    "applications_api_environment": API_ENVIRONMENT | {"REDIS_HOST": "nowhere"},
    "platform_wait_timeout": 60,
}


def unharmed(customers: Customers, rate: int, action: Callable[[], Any]) -> None:
    """Do something that must fail no request, and leave API and web as they were."""
    before = {name: template(name) for name in (API, WEB)}

    def done() -> None:
        action()
        settled()

    served = customers.during(done, rate)
    print(f"\n{served}")
    assert not served.failed, served.failed[:10]
    assert {name: template(name) for name in (API, WEB)} == before


def revision(name: str) -> int:
    """How many pod templates a Deployment has had."""
    return int(get("deployment", name)["metadata"]["annotations"]["deployment.kubernetes.io/revision"])


def test_two_runs_started_together_migrate_once_and_both_end_well(customers: Customers, rate: int) -> None:
    wanted = release(3)
    before = {name: revision(name) for name in (API, WEB)}

    def both() -> None:
        words = command("site", **wanted)
        runs = [
            subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for _ in range(2)
        ]
        outputs = [run.communicate()[0] for run in runs]
        assert [run.returncode for run in runs] == [0, 0], "\n".join(output[-3000:] for output in outputs)
        settled()

    served = customers.during(both, rate)
    print(f"\ntwo runs: {served}")
    assert not served.failed, served.failed[:10]
    (job,) = get("jobs", "-l", "app.kubernetes.io/name=citadelbuy-migration")["items"]
    name = job["metadata"]["name"]
    assert (job["status"].get("succeeded"), job["status"].get("failed", 0)) == (1, 0)
    assert len(get("pods", "-l", f"job-name={name}")["items"]) == 1
    query = f"--field-selector=reason=SuccessfulCreate,involvedObject.kind=Job,involvedObject.name={name}"
    made = get("events", query)["items"]
    assert sum(event.get("count") or 1 for event in made) == 1, "the migration has run more than once"
    assert {name: revision(name) - number for name, number in before.items()} == {API: 1, WEB: 1}
    for one in (API, WEB):
        (container,) = template(one)["spec"]["containers"]
        assert {"name": "RELEASE", "value": "3"} in container["env"]
    assert "changed=0 " in playbook("site", **wanted)
    playbook(*APPLICATIONS)
    settled()


def test_an_image_that_is_not_there_is_undone_by_hand(customers: Customers, rate: int) -> None:
    def broken() -> None:
        code, output = attempt(*APPLICATIONS, applications_web_image="citadelbuy.local/web:0.0.0")
        assert code == 2, output[-3000:]
        assert "ErrImagePull" in output or "ImagePullBackOff" in output
        assert f"{WEB}: is back at" in " ".join(playbook("rollback").split())

    unharmed(customers, rate, broken)


def test_pods_that_are_not_ready_are_undone_by_hand(customers: Customers, rate: int) -> None:
    def broken() -> None:
        code, output = attempt(*APPLICATIONS, **NOT_READY)
        assert code == 2, output[-3000:]
        assert API in output
        assert f"{API}: is back at" in " ".join(playbook("rollback").split())

    unharmed(customers, rate, broken)


def test_pods_that_are_not_ready_are_undone_by_themselves(customers: Customers, rate: int) -> None:
    def broken() -> None:
        code, output = attempt(*APPLICATIONS, applications_rollback_on_failure=True, **NOT_READY)
        assert code == 2, output[-3000:]
        # Nothing is left to do by hand.
        assert "Every rollout is complete" in " ".join(playbook("rollback").split())

    unharmed(customers, rate, broken)


def test_a_migration_that_fails_changes_no_pod(customers: Customers, rate: int) -> None:
    before = {name: revision(name) for name in (API, WEB)}

    def broken() -> None:
        failing = {
            "applications_migration_command": ["sh", "-c", "echo column price does not exist >&2; exit 1"],
            "applications_migration_retries": 0,
        }
        code, output = attempt(*APPLICATIONS, **release(4, **failing))
        text = " ".join(output.split())
        assert code == 2, output[-3000:]
        assert "column price does not exist" in text
        assert "API and web front end were left as they were" in text
        assert "Every rollout is complete" in " ".join(playbook("rollback").split())

    unharmed(customers, rate, broken)
    assert {name: revision(name) for name in (API, WEB)} == before
