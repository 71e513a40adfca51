"""From nothing to all ready: the namespaces are deleted and the platform is deployed anew. Destroys its data."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from contenders import LOCAL, Rivals, playbook
from pairing import ENOUGH, BenchmarkError, Pair, Report, progress, seconds
from platform_objects import WORKLOADS, applied, embedded_cluster, live_objects

RELEASE = "benchmark"
TIMEOUT = "600s"


def ours() -> None:
    """All that has to become ready, preflight included; `verify` comes after that."""
    playbook("playbooks/site.yml", "--skip-tags", "verify", "-i", LOCAL)


def measure(report: Report, rounds: int, folder: Path) -> None:
    """Pair our deployment with kubectl's and Helm's, each on a cluster without the platform."""
    live = live_objects(embedded_cluster())
    bodies = [applied(body) for body in live]
    rivals = Rivals(bodies, folder / "same")
    namespaces = Rivals([body for body in bodies if body["kind"] == "Namespace"], folder / "namespaces")
    names = [body["metadata"]["name"] for body in namespaces.bodies]
    helm = rivals.helm(RELEASE, "--wait", "--wait-for-jobs", "--timeout", TIMEOUT)

    def vanish() -> None:
        rivals.helm_uninstall(RELEASE)
        rivals.delete_namespaces(names)
        volumes = rivals.kubectl(
            "get",
            "persistentvolumes",
            "--output=jsonpath={range .items[*]}{.metadata.name} {.spec.claimRef.namespace}\n{end}",
        )
        gone = [line.split()[0] for line in volumes.splitlines() if line.split()[-1] in names]
        if gone:
            rivals.kubectl(
                "wait", "--for=delete", f"--timeout={TIMEOUT}", *(f"persistentvolume/{name}" for name in gone)
            )

    def kubectl() -> None:
        namespaces.kubectl_apply()
        rivals.kubectl_apply()
        _wait_with_kubectl(rivals)

    rounds = max(min(rounds, ENOUGH), rounds // 2)
    try:
        for name, rival, limit in (
            ("kubectl apply and rollout status", kubectl, 1.15),
            ("helm upgrade --install --wait", helm, None),
        ):
            pair = Pair(f"First deployment, {len(bodies)} objects, until all is ready", "site.yml", name, limit=limit)
            for number in range(rounds):
                progress(f"{pair.title}: round {number + 1} of {rounds}")
                pair.ours.append(_from_nothing(vanish, ours))
                pair.rival.append(_from_nothing(vanish, rival))
            progress("")
            report.add(pair)
    finally:
        progress("deploying the platform again")
        vanish()
        playbook("playbooks/site.yml", "-i", LOCAL)
        progress("")


def _from_nothing(vanish: Callable[[], None], action: Callable[[], None]) -> float:
    vanish()
    return seconds(action)


def _wait_with_kubectl(rivals: Rivals) -> None:
    """Wait for all workloads at once, and for Jobs."""
    commands = []
    for body in rivals.bodies:
        where = (f"--namespace={body['metadata'].get('namespace')}", f"--timeout={TIMEOUT}")
        name = f"{body['kind'].lower()}/{body['metadata']['name']}"
        if body["kind"] in WORKLOADS:
            commands.append(("rollout", "status", name, *where))
        elif body["kind"] == "Job":
            commands.append(("wait", "--for=condition=complete", name, *where))
    if not commands:
        raise BenchmarkError("the platform has no workloads: `make up` first.")
    with ThreadPoolExecutor(len(commands)) as pool:
        list(pool.map(lambda command: rivals.kubectl(*command), commands))
