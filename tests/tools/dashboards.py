"""The dashboards of the role grafana, as tests look at them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ansible.plugins.loader import init_plugin_loader
from ansible.utils.collection_loader import AnsibleCollectionConfig

CHECKOUT = Path(__file__).resolve().parents[2]
if not AnsibleCollectionConfig.collection_finder:
    init_plugin_loader([str(CHECKOUT / "collections")])

from ansible_collections.citadelbuy.platform.plugins.filter import grafana_dashboard  # noqa: E402

FOLDER = CHECKOUT / "roles/grafana/files/dashboards"


@dataclass(frozen=True)
class Query:
    """One query of a panel, its variables replaced."""

    dashboard: str
    panel: str
    text: str
    empty: str
    """Why it may have no data; empty where it must have some."""

    def __str__(self) -> str:
        return f"{self.dashboard} / {self.panel}: {self.text}"


def short_forms(datasource: str = "") -> dict[str, dict[str, Any]]:
    """Dashboards as they are written, by file name without its ending.

    :param datasource: only those of it, prometheus or logs.
    """
    forms = {file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) for file in sorted(FOLDER.glob("*.yml"))}
    return {name: form for name, form in forms.items() if datasource in ("", form.get("datasource", "prometheus"))}


def models() -> dict[str, dict[str, Any]]:
    """All dashboards in Grafana's JSON model, by uid."""
    return {name: grafana_dashboard.grafana_dashboard(form) for name, form in short_forms().items()}


def queries(form: Mapping[str, Any]) -> Iterator[Query]:
    """Every query of a dashboard: once for each value of a variable that names its values, else for all of them."""
    for place, panel in grafana_dashboard.panels(form):
        for item in grafana_dashboard.queries(panel):
            texts = {item["query"].strip()}
            for variable in form.get("variables") or []:
                name = re.compile(rf"\$(?:{variable['name']}\b|{{{variable['name']}}})")
                values = [str(value) for value in variable.get("values") or [".*"]]
                texts = {name.sub(lambda _match, value=value: value, text) for text in texts for value in values}
            for text in sorted(texts):
                yield Query(form["uid"], place.split(", ", 1)[1], text, panel.get("empty", ""))
