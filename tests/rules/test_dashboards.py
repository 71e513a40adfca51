"""Queries of the dashboards: Prometheus takes each, and what they take from recording rules is recorded."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "render"))

import dashboards
import rendering

QUERIES = [query for form in dashboards.short_forms("prometheus").values() for query in dashboards.queries(form)]
# Level, metric and operation, by colons: label matchers and strings are gone before this looks.
RECORDED = re.compile(r"\b[a-zA-Z_]\w*(?::\w+)+")


def check(folder: Path, queries: list[str]) -> subprocess.CompletedProcess[str]:
    """promtool's judgement of queries, each as a recording rule of its own."""
    rules = [{"record": f"panel:query:{number:04}", "expr": query} for number, query in enumerate(queries)]
    file = folder / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": rules}]}))
    return subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False)


def test_prometheus_takes_every_query(tmp_path: Path) -> None:
    assert len(QUERIES) > 100
    done = check(tmp_path, [query.text for query in QUERIES])
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(QUERIES)} rules found" in done.stdout


def test_a_broken_query_is_seen(tmp_path: Path) -> None:
    done = check(tmp_path, ["sum(up)", "sum by (job (up)"])
    assert done.returncode != 0
    assert "parse error" in done.stdout + done.stderr


@pytest.fixture(scope="module")
def recorded() -> set[str]:
    """The names of all recording rules of the role alerts, as the local inventory has them."""
    sets = [item for item in rendering.render_inventory("local") if item.role == "alerts"]
    files = [
        text
        for rendered in sets
        for manifest in rendered.manifests
        if manifest.kind == "ConfigMap"
        for text in manifest.body["data"].values()
    ]
    groups = [group for text in files for group in yaml.safe_load(text)["groups"]]
    return {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}


@pytest.mark.parametrize("name", sorted({query.dashboard for query in QUERIES}))
def test_recorded_series_are_recorded(name: str, recorded: set[str]) -> None:
    missing = {
        f"{query.panel}: {series}"
        for query in QUERIES
        if query.dashboard == name
        for series in RECORDED.findall(re.sub(r"\{[^}]*\}|\[[^]]*\]|\"[^\"]*\"", "", query.text))
        if series not in recorded
    }
    assert missing == set()
