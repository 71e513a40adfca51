"""What each further unchanged object costs: sets of 100, 500 and 1,000 ConfigMaps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from contenders import LOCAL, Rivals, playbook, unchanged
from pairing import CHECKOUT, Pair, Report, peak_memory, progress, seconds
from platform_objects import applied, embedded_cluster, live_objects

NAMESPACE = "benchmark-objects"
SIZES = (100, 500, 1000)
LIMIT = 5  # ms an object
SET = CHECKOUT / "tests/benchmarks/set.yml"


def deploy(size: int, *arguments: str) -> str:
    """Apply the set of this many ConfigMaps, with one `manifests` task."""
    extra = ("-e", f"benchmark_size={size}", "-e", f"benchmark_namespace={NAMESPACE}")
    return playbook(SET, "-i", LOCAL, *extra, *arguments)


def measure(report: Report, rounds: int, folder: Path) -> None:
    """Time unchanged runs of every size; the slope is (the largest - the smallest) / their difference in objects."""
    cluster = embedded_cluster()
    live_objects(cluster)  # tells when there is none
    namespace = Rivals([], folder / "namespace")
    namespace.delete_namespaces([NAMESPACE])
    namespace.kubectl("create", "namespace", NAMESPACE)
    try:
        _measure(report, rounds, folder)
    finally:
        namespace.delete_namespaces([NAMESPACE])


def _measure(report: Report, rounds: int, folder: Path) -> None:
    rivals: dict[int, Rivals] = {}
    for size in SIZES:
        report.note(f"first run, {size} objects created", f"{seconds(partial(deploy, size)):.2f} s")
        live = [
            body
            for body in live_objects(embedded_cluster(), NAMESPACE)
            if body["metadata"]["name"].startswith(f"benchmark-{size}-")
        ]
        rivals[size] = Rivals([applied(body) for body in live], folder / str(size))
        assert len(live) == size, f"{len(live)} of {size} objects are there"

    core = {size: rivals[size].core_list() for size in SIZES}
    # kubernetes.core takes minutes.
    _compare(report, "kubectl apply --server-side", lambda size: rivals[size].kubectl_apply(), rounds, LIMIT)
    _compare(report, "k8s, one task", lambda size: core[size](), 1, None)

    for size in SIZES:
        memory = peak_memory(partial(ours, size))
        report.note(f"peak memory, {size} objects, manifests", f"{memory:.0f} MiB")
    largest = rivals[SIZES[-1]]
    report.note(f"peak memory, {SIZES[-1]} objects, kubectl", f"{peak_memory(largest.kubectl_apply):.0f} MiB")


def ours(size: int) -> None:
    """The run that is measured; it must change nothing."""
    unchanged(deploy(size))


def _compare(report: Report, name: str, rival: Callable[[int], None], rounds: int, limit: float | None) -> None:
    pairs = {size: Pair(f"No change, {size} ConfigMaps", "manifests", name) for size in SIZES}
    for number in range(rounds):
        for size, pair in pairs.items():
            progress(f"{pair.title}: round {number + 1} of {rounds}")
            pair.ours.append(seconds(partial(ours, size)))
            pair.rival.append(seconds(partial(rival, size)))
    progress("")
    least, most = SIZES[0], SIZES[-1]

    def slopes(side: str) -> list[float]:
        times = zip(getattr(pairs[most], side), getattr(pairs[least], side), strict=True)
        return [(large - small) / (most - least) * 1000 for large, small in times]

    slope = Pair("Each further unchanged object", "manifests", name, unit="ms", own_limit=limit)
    slope.ours, slope.rival = slopes("ours"), slopes("rival")
    for pair in (*pairs.values(), slope):
        report.add(pair)
