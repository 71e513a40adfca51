"""A run that has nothing to do: the whole of site.yml against others applying the very same objects."""

from __future__ import annotations

from pathlib import Path

from contenders import LOCAL, Rivals, playbook, unchanged
from pairing import ENOUGH, BenchmarkError, Pair, Report, peak_memory
from platform_objects import applied, changes, embedded_cluster, live_objects, without_pods

SITE = "ansible-playbook site.yml"
PREFIX = "benchmark-"
RELEASE = "benchmark"


def site() -> None:
    """The command that is measured; it must change nothing."""
    unchanged(playbook("playbooks/site.yml", "-i", LOCAL))


def measure(report: Report, rounds: int, folder: Path) -> None:
    """Pair site.yml with each rival; the slow ones get fewer rounds."""
    cluster = embedded_cluster()
    before = live_objects(cluster)
    try:
        unchanged(playbook("playbooks/site.yml", "-i", LOCAL, "--check"))
    except BenchmarkError as error:
        raise BenchmarkError(f"the platform is not as this checkout wants it: `make up` first. ({error})") from None
    rivals = Rivals([applied(body) for body in before], folder / "same")
    count = len(before)
    few = max(min(rounds, ENOUGH), rounds // 2)

    site()
    rivals.kubectl_apply()
    _nothing_changed(before, cluster, "kubectl apply")
    pair = Pair(f"No change, {count} objects: site.yml against kubectl", SITE, "kubectl apply --server-side", limit=3)
    report.add(pair.measure(site, rivals.kubectl_apply, rounds))

    core_list = rivals.core_list()
    core_list()
    pair = Pair(f"No change, {count} objects: site.yml against one kubernetes.core task", SITE, "k8s, one task")
    report.add(pair.measure(site, core_list, few))

    each = rivals.core_task_an_object()
    title = f"No change, {count} objects: site.yml against a kubernetes.core task an object (ten times faster: 0.1)"
    report.add(Pair(title, SITE, "k8s, a task an object", limit=0.1).measure(site, each, few))
    _nothing_changed(before, cluster, "kubernetes.core")

    copy = Rivals(without_pods(rivals.bodies, PREFIX), folder / "copy")
    namespaces = [body["metadata"]["name"] for body in copy.bodies if body["kind"] == "Namespace"]
    upgrade = copy.helm(RELEASE)
    try:
        copy.helm_uninstall(RELEASE)
        copy.delete_namespaces(namespaces)
        upgrade()
        upgrade()
        # Helm wants objects that carry its labels, so it has a copy of them, in namespaces of its own and without pods.
        title = f"No change, {count} objects: site.yml against Helm (its objects: a copy without pods)"
        report.add(Pair(title, SITE, "helm upgrade --install").measure(site, upgrade, rounds))
    finally:
        copy.helm_uninstall(RELEASE)
        copy.delete_namespaces(namespaces)
    _nothing_changed(before, cluster, "Helm")

    report.note("peak memory of site.yml", f"{peak_memory(site):.0f} MiB")
    report.note("peak memory of kubectl apply", f"{peak_memory(rivals.kubectl_apply):.0f} MiB")


def _nothing_changed(before: list, cluster: object, who: str) -> None:
    changed = changes(before, live_objects(cluster))
    if changed:
        raise BenchmarkError(f"no fair pair: meanwhile ({who}) these changed: {', '.join(changed)}.")
