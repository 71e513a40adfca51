"""Every alert fires when it should, stays silent when it should, and has a runbook."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

HERE = Path(__file__).resolve().parent
RUNBOOKS = HERE.parents[1] / "docs/runbooks"
CASES = sorted((HERE / "cases").glob("*.yml"))
BY_ALERT = {file.name for file in RUNBOOKS.glob("[A-Z]*.md")} - {"README.md"}  # the others are of playbooks
RATE = re.compile(r"\b(?:rate|increase|irate|delta|deriv|\w+_over_time)\(\s*[^()]*\[[^]]*\]\s*\)")
ONE_CONDITION = {"Watchdog"}  # it always fires: silent it is a fault

Alert = dict[str, Any]


def rules(folder: Path) -> list[Alert]:
    """All rules of a folder."""
    files = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.yml"))]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def alerts(folder: Path) -> list[Alert]:
    """All alerts of a folder; a name with two severities is there twice."""
    return [rule for rule in rules(folder) if "alert" in rule]


def checks() -> list[Alert]:
    """What the cases ask: one time and one alert each."""
    tests = [test for file in CASES for test in yaml.safe_load(file.read_text(encoding="utf-8"))["tests"]]
    return [check for test in tests for check in test["alert_rule_test"]]


def run(*command: object, cwd: Path | None = None) -> None:
    """Run a program; its output is the message when it fails."""
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_rules(every_inventory: Path, promtool: Path) -> None:
    run(promtool, "check", "rules", "--lint-fatal", *sorted(every_inventory.glob("*.yml")))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_cases(case: Path, prod: Path, promtool: Path, tmp_path: Path) -> None:
    """promtool's own format, without what is the same everywhere: the rule files and the runbooks' addresses."""
    content = yaml.safe_load(case.read_text(encoding="utf-8"))
    content["rule_files"] = [str(prod / "recording.yml"), str(prod / case.name)]
    # Without it promtool evaluates groups in any order, each time another.
    content["group_eval_order"] = [
        group["name"] for file in content["rule_files"] for group in yaml.safe_load(Path(file).read_text())["groups"]
    ]
    urls = {alert["alert"]: alert["annotations"]["runbook_url"] for alert in alerts(prod)}
    for check in (check for test in content["tests"] for check in test["alert_rule_test"]):
        for expected in check["exp_alerts"]:
            expected["exp_annotations"]["runbook_url"] = urls[check["alertname"]]
    (tmp_path / case.name).write_text(yaml.safe_dump(content), encoding="utf-8")
    run(promtool, "test", "rules", tmp_path / case.name)


def test_every_category_has_cases(prod: Path) -> None:
    assert {file.name for file in prod.glob("*.yml")} - {"recording.yml"} == {case.name for case in CASES}


def test_every_alert_fires_in_a_case_with_each_severity(prod: Path) -> None:
    fired = {
        (check["alertname"], expected["exp_labels"]["severity"])
        for check in checks()
        for expected in check["exp_alerts"]
    }
    assert {(alert["alert"], alert["labels"]["severity"]) for alert in alerts(prod)} == fired


def test_every_alert_is_silent_in_a_case(prod: Path) -> None:
    silent = {check["alertname"] for check in checks() if not check["exp_alerts"]}
    assert {alert["alert"] for alert in alerts(prod)} - silent == ONE_CONDITION


def test_every_alert_is_complete(every_inventory: Path) -> None:
    for alert in alerts(every_inventory):
        name = alert["alert"]
        assert re.fullmatch(r"\d+[smhd]", alert["for"]), name
        assert alert["labels"].keys() == {"severity", "team"}, name
        assert alert["labels"]["severity"] in {"critical", "warning", "info"}, name
        assert alert["labels"]["team"] in {"platform", "shop"}, name
        assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}, name
        assert alert["annotations"]["runbook_url"].endswith(f"/docs/runbooks/{name}.md"), name


def test_every_alert_has_a_runbook_and_every_runbook_an_alert(prod: Path) -> None:
    assert {f"{alert['alert']}.md" for alert in alerts(prod)} == BY_ALERT


@pytest.mark.parametrize("name", sorted(BY_ALERT))
def test_runbooks_are_of_one_shape(name: str) -> None:
    text = (RUNBOOKS / name).read_text(encoding="utf-8")
    assert text.startswith(f"# {name.removesuffix('.md')}\n")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Meaning", "Impact", "Diagnosis", "Mitigation"]
    assert 12 <= len(text.splitlines()) <= 40


def test_the_index_names_every_runbook_with_its_severities(prod: Path) -> None:
    severities: dict[str, list[str]] = {}
    for alert in alerts(prod):
        severities.setdefault(alert["alert"], []).append(alert["labels"]["severity"])
    rows = re.findall(
        r"^\| \[(\w+)\]\(\1\.md\) \| ([\w, ]+) \|", (RUNBOOKS / "README.md").read_text(encoding="utf-8"), re.M
    )
    assert dict(rows) == {name: ", ".join(found) for name, found in severities.items()}


def test_no_rate_is_computed_twice(prod: Path) -> None:
    """What two rules need is recorded once."""
    found = Counter(
        " ".join(expression.split())
        for rule in rules(prod)
        for expression in set(RATE.findall(rule["expr"]))
        if not rule.get("record", "").startswith("slo:")  # of their own recorded rates, a few series each
    )
    assert [expression for expression, times in found.items() if times > 1] == []
