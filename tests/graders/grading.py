"""What kube-score and checkov say about manifests, and what of it is an exception."""

from __future__ import annotations

import fnmatch
import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from programs import Programs

HERE = Path(__file__).resolve().parent
# The newest minor version whose rules kube-score can be told to apply: that of the embedded cluster.
KUBERNETES_VERSION = "v1.35"
OK_GRADE = 10  # kube-score: critical 1, warning 5, almost OK 7


@dataclass(frozen=True, order=True)
class Finding:
    """One check that one object fails."""

    check: str
    kind: str
    namespace: str
    name: str
    detail: str

    def __str__(self) -> str:
        return f"{self.check} {self.kind} {self.namespace}/{self.name}: {self.detail}"


@dataclass
class Report:
    """A grader's findings, how many checks passed or were skipped, and the objects that it looked at, as kind/name."""

    findings: list[Finding]
    passed: int
    skipped: int
    objects: set[str]


@dataclass(frozen=True)
class Allowed:
    """A check, by each grader's name for it, that is not followed for some objects."""

    checks: tuple[str, ...]
    objects: tuple[str, ...]
    reason: str

    def covers(self, finding: Finding, *patterns: str) -> bool:
        """Whether a finding is of this check and of one of these objects, or of those that are given."""
        return finding.check in self.checks and any(
            fnmatch.fnmatchcase(f"{finding.kind}/{finding.name}", pattern) for pattern in patterns or self.objects
        )


def exceptions() -> list[Allowed]:
    """The exceptions of exceptions.yml.

    :raises TypeError: where one has another key than checks, objects and reason, or lacks one.
    """
    items = yaml.safe_load((HERE / "exceptions.yml").read_text(encoding="utf-8"))
    return [
        Allowed(**{name: value if name == "reason" else tuple(value) for name, value in item.items()}) for item in items
    ]


def outside(findings: Iterable[Finding], allowed: Iterable[Allowed]) -> list[Finding]:
    """The findings that no exception covers."""
    allowed = list(allowed)
    return sorted(finding for finding in findings if not any(each.covers(finding) for each in allowed))


def kube_score(programs: Programs, folder: Path) -> Report:
    """Grade all manifests below a folder: its default checks, whatever annotations say.

    :raises RuntimeError: where kube-score does not run to its end.
    """
    files = sorted(str(file) for file in folder.rglob("*.yaml"))
    options = ["--output-format=json", "--disable-ignore-checks-annotations"]
    options.append(f"--kubernetes-version={KUBERNETES_VERSION}")
    findings, passed, objects = [], 0, set()
    for graded in _output([str(programs.kube_score), "score", *options, *files]):
        kind, meta = graded["type_meta"]["kind"], graded["object_meta"]
        objects.add(f"{kind}/{meta['name']}")
        for check in graded["checks"]:
            if check["skipped"]:
                continue
            if check["grade"] >= OK_GRADE:
                passed += 1
                continue
            comments = check["comments"] or [{"path": "", "summary": check["check"]["comment"]}]
            detail = "; ".join(f"{item['path']} {item['summary']}".strip() for item in comments)
            findings.append(Finding(check["check"]["id"], kind, meta.get("namespace", ""), meta["name"], detail))
    return Report(findings, passed, 0, objects)


def checkov(programs: Programs, folder: Path) -> Report:
    """Grade all manifests below a folder by every policy that checkov ships; nothing is downloaded.

    :raises RuntimeError: where checkov does not run to its end, or cannot read a file.
    """
    options = ["--framework=kubernetes", "--output=json", "--compact", "--skip-download", "--directory", str(folder)]
    result = _output([str(programs.checkov), *options])
    if result["summary"]["parsing_errors"]:
        raise RuntimeError(f"checkov cannot read {result['results']['parsing_errors']}")
    findings, objects = [], set()
    for check in [*result["results"]["passed_checks"], *result["results"]["failed_checks"]]:
        kind, namespace, name = check["resource"].split(".", 2)
        objects.add(f"{kind}/{name}")
        if check["check_result"]["result"] == "FAILED":
            findings.append(Finding(check["check_id"], kind, namespace, name, check["check_name"]))
    return Report(findings, result["summary"]["passed"], result["summary"]["skipped"], objects)


def _output(command: list[str]) -> Any:
    """What a grader prints as JSON; it exits with 1 where it has findings."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return json.loads(done.stdout)
    except ValueError:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr or done.stdout}") from None
