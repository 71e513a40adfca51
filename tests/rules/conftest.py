"""The rules of every inventory, rendered as Prometheus gets them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "render"))

import shutil

import rendering


def rendered_rules(inventory: str, folder: Path) -> Path:
    """Write the rule files of an inventory's first cluster; backups are expected, as nothing else is left out."""
    without_secrets = {"secrets_grafana_admin_password": rendering.STAND_IN, "secrets_alertmanager": {}}
    backups = {"alerts_backups_enabled": True, "alerts_backups_stores": ["postgres", "redis", "elasticsearch"]}
    sets = rendering.render_inventory(inventory, **backups, **without_secrets)
    (rules,) = next(rendered for rendered in sets if rendered.role == "alerts").manifests
    assert rules.name == "prometheus-rules"
    for name, text in rules.body["data"].items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session", params=rendering.INVENTORIES)
def every_inventory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the rules of an inventory."""
    return rendered_rules(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def prod(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the rules of prod."""
    return rendered_rules("prod", tmp_path_factory.mktemp("rules"))


@pytest.fixture(scope="session")
def promtool() -> Path:
    """The program, which programs.py has installed."""
    return Path(shutil.which("promtool") or "promtool")
