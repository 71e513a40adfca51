"""kube-score and checkov find nothing in the manifests of prod, outside of a few exceptions."""

from __future__ import annotations

from pathlib import Path

import grading
import rendering
import yaml
from programs import Programs

WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob")


def test_nothing_is_found_outside_of_the_exceptions(report: grading.Report) -> None:
    found = grading.outside(report.findings, grading.exceptions())
    assert not found, "\n".join(map(str, found))


def test_every_workload_was_graded(report: grading.Report, prod: list[rendering.Rendered]) -> None:
    workloads = {f"{item.kind}/{item.name}" for each in prod for item in each.manifests if item.kind in WORKLOADS}
    assert len(workloads) >= 6
    assert workloads <= report.objects
    assert report.passed > 100
    assert report.skipped == 0


def test_every_exception_is_needed(reports: dict[str, grading.Report]) -> None:
    findings = [finding for report in reports.values() for finding in report.findings]
    idle = [
        f"{check}: {pattern}"
        for allowed in grading.exceptions()
        for check in allowed.checks
        for pattern in allowed.objects
        if not any(finding.check == check and allowed.covers(finding, pattern) for finding in findings)
    ]
    assert not idle, f"exceptions.yml: matches nothing, remove it: {', '.join(idle)}"


def test_exceptions_are_few_and_reasoned() -> None:
    found = grading.exceptions()
    assert len(found) <= 6
    names = [check for allowed in found for check in allowed.checks]
    assert len(set(names)) == len(names)
    assert all(len(allowed.reason) > 40 for allowed in found)


def test_the_graders_see_what_is_broken(programs: Programs, manifests: Path, tmp_path: Path) -> None:
    file = next(manifests.rglob("deployment-citadelbuy-api.yaml"))
    body = yaml.safe_load(file.read_text())
    container = body["spec"]["template"]["spec"]["containers"][0]
    container["securityContext"] = {"readOnlyRootFilesystem": False, "privileged": True}
    del container["resources"]["limits"]
    # Annotations excuse nothing: kube-score ignores them, what checkov skips is counted.
    readonly = "container-security-context-readonlyrootfilesystem"
    body["metadata"]["annotations"] = {"kube-score/ignore": readonly, "checkov.io/skip1": "CKV_K8S_15=quietly"}
    (tmp_path / file.name).write_text(yaml.safe_dump(body))
    found = {finding.check for finding in grading.kube_score(programs, tmp_path).findings}
    assert found >= {readonly, "container-security-context-privileged", "container-resources", "pod-networkpolicy"}
    report = grading.checkov(programs, tmp_path)
    found = {finding.check for finding in report.findings}
    assert found >= {"CKV_K8S_22", "CKV_K8S_16", "CKV_K8S_13", "CKV2_K8S_6"}
    assert report.skipped == 1
