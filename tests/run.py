#!/usr/bin/env python3
"""Run the stages of `make test`: all of them, whichever fails. The last line holds pytest's counts, summed.

run.py [lint] [unit] [render] [graders] [rules] [firewall] [viewer] [molecule] [disaster] [ha] [cluster]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
REPORTS = CHECKOUT / ".cache/tests"
CACHE = Path(os.environ.get("CITADELBUY_CACHE") or Path.home() / ".cache/citadelbuy")
NEEDS_BINARIES = ("unit", "render")  # the others make them with their cluster
MOLECULE = ("molecule", "disaster", "ha")  # they run pytest themselves
Command = list[str]


def commands(stage: str) -> list[Command]:
    """What a stage runs."""
    junit = f"--junit-xml={REPORTS / stage}.xml"
    return {
        "lint": [["ruff", "check", "."], ["yamllint", "--strict", "."], ["ansible-lint", "-q"]],
        "unit": [
            ["python", "tests/unit/programs.py"],
            # Much of it waits for an API server: two processes, each with its own, and a file's tests in one of them.
            ["pytest", "--numprocesses=2", "--dist=loadfile", "tests/unit", "tests/images", junit],
        ],
        "render": [["pytest", "tests/render", junit]],
        "graders": [["python", "tests/graders/programs.py"], ["pytest", "tests/graders", junit]],
        "rules": [["python", "tests/rules/programs.py"], ["pytest", "tests/rules", junit]],
        "firewall": [["python", "tests/firewall/programs.py"], ["pytest", "tests/firewall", junit]],
        "viewer": [["python", "tests/viewer/programs.py"], ["pytest", "tests/viewer", junit]],
        "molecule": [
            ["python", "tests/viewer/programs.py"],  # a browser looks at the dashboards
            ["molecule", "test", "--no-command-borders", "--scenario-name", "default"],
        ],
        "disaster": [["molecule", "test", "--no-command-borders", "--scenario-name", "disaster"]],
        "ha": [["molecule", "test", "--no-command-borders", "--scenario-name", "ha"]],
        "cluster": [["pytest", "tests/local_cluster", junit]],
    }[stage]


def binaries() -> Path | None:
    """The newest folder of Kubernetes programs in the cache."""
    found = sorted(CACHE.glob("binaries/*/kube-apiserver"), key=lambda file: file.stat().st_mtime)
    return found[-1].parent if found else None


def run(command: Command, **env: str) -> bool:
    """Run a command of this environment in the checkout; tells whether it ended well."""
    print(f"$ {' '.join(command)}", flush=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    try:
        return subprocess.run(command, cwd=CHECKOUT, env=os.environ | {"PATH": path} | env, check=False).returncode == 0
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", flush=True)
        return False


def run_stage(stage: str) -> bool:
    """Run a stage and tell how it ended."""
    print(f"\n===== {stage} =====", flush=True)
    begun = time.monotonic()
    addopts = f"--junit-xml={REPORTS / stage}.xml"
    # Another version of this collection, installed in the user's home, is not the one to look at.
    env = {"ANSIBLE_HOME": str(CHECKOUT / ".cache/ansible")}
    if stage in MOLECULE:
        env["PYTEST_ADDOPTS"] = addopts
    good = True
    if stage in NEEDS_BINARIES:
        if not binaries():
            good = run(["ansible-playbook", "playbooks/local_binaries.yml", "-i", "inventories/local"])
        env["CITADELBUY_BINARIES"] = str(binaries() or "")
    if good:
        results = [run(command, **env) for command in commands(stage)]
        good = all(results)
    print(f"===== {stage}: {'passed' if good else 'FAILED'} in {time.monotonic() - begun:.0f} s =====", flush=True)
    return good


def counts(stage: str, good: bool) -> Counter[str]:
    """What a stage's pytest counted; a stage that failed without a failed test is one error."""
    found: Counter[str] = Counter()
    report = REPORTS / f"{stage}.xml"
    if report.exists():
        for suite in ElementTree.parse(report).getroot().iter("testsuite"):
            number = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
            bad = number["failures"] + number["errors"] + number["skipped"]
            found += Counter(
                failed=number["failures"],
                passed=number["tests"] - bad,
                skipped=number["skipped"],
                errors=number["errors"],
            )
    if not good and not found["failed"] and not found["errors"]:
        found["errors"] += 1
    return found


def main() -> int:
    """Run the stages that were named."""
    parser = argparse.ArgumentParser(description=__doc__)
    stages = ["lint", "unit", "render", "graders", "rules", "firewall", "viewer"]
    stages += ["molecule", "disaster", "ha", "cluster"]
    parser.add_argument("stages", nargs="+", choices=stages)
    stages = parser.parse_args().stages
    REPORTS.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    total: Counter[str] = Counter()
    results = {}
    for stage in stages:
        (REPORTS / f"{stage}.xml").unlink(missing_ok=True)
        results[stage] = run_stage(stage)
        total += counts(stage, results[stage])
    print("\n" + ", ".join(f"{stage}: {'passed' if good else 'FAILED'}" for stage, good in results.items()))
    words = [f"{total[key]} {key}" for key in ("failed", "passed", "skipped", "errors") if total[key]]
    print(f"{', '.join(words) or '0 tests'} in {time.monotonic() - begun:.2f}s", flush=True)
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
