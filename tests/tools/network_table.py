#!/usr/bin/env python3
"""Write the picture and the table of docs/network.md from roles/network_policies/vars/main.yml.

network_table.py            write
network_table.py --check    exit 1 where it is not current
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
ROLE = CHECKOUT / "roles/network_policies"
DOCUMENT = CHECKOUT / "docs/network.md"
BEGIN, END = "<!-- edges: written by tests/tools/network_table.py -->", "<!-- end of edges -->"
VARIABLE = re.compile(r"\{\{ (\w+) \}\}")
# Who may call third parties.
CALLERS = ("api", "alertmanager", "grafana", "postgres", "postgres-backup-exporter", "postgres-verify")


def load(file: str) -> dict[str, Any]:
    """A YAML file of the role."""
    return yaml.safe_load((ROLE / file).read_text(encoding="utf-8"))


def ports(edge: dict[str, Any], defaults: dict[str, Any]) -> str:
    """The ports of an edge, those of a variable by their default."""
    value = edge["ports"]
    if isinstance(value, str):
        value = defaults[VARIABLE.fullmatch(value)[1]]
    return ", ".join(value)


def written() -> str:
    """The picture (Mermaid, without the edges of monitoring and DNS, which everybody has) and the table of all."""
    variables, defaults = load("vars/main.yml"), load("defaults/main.yml")
    edges = variables["__network_policies_edges"]
    outside = variables["__network_policies_outside"]
    lines = ["```mermaid", "flowchart LR"]
    lines += [f"  {name}([{name}])" for name in outside if name != "dns"] + ["  third_parties([third parties])"]
    lines += [f"  {name}[{name}]" for name in variables["__network_policies_parts"]]
    lines += [
        f"  {edge['from']} -->|{ports(edge, defaults)}| {edge['to']}"
        for edge in edges
        if edge["from"] not in ("prometheus", edge["to"]) and edge["to"] != "dns"
    ]
    lines += [f"  {name} -->|by variable| third_parties" for name in CALLERS]
    lines += ["```", "", "| from | to | ports | why |", "|---|---|---|---|"]
    lines += [f"| {edge['from']} | {edge['to']} | {ports(edge, defaults)} | {edge['why']} |" for edge in edges]
    by_variable = "third parties | by variable | `network_policies_third_parties` of the inventory"
    lines += [f"| {name} | {by_variable} |" for name in CALLERS]
    return "\n".join(lines)


def renewed(text: str) -> str:
    """The document with picture and table renewed."""
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}\n\n{written()}\n\n{END}{rest.partition(END)[2]}"


def main() -> int:
    """Write, or tell whether it is current."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 where it is not current")
    check = parser.parse_args().check
    text = DOCUMENT.read_text(encoding="utf-8")
    if renewed(text) == text:
        return 0
    if check:
        print(f"{DOCUMENT.relative_to(CHECKOUT)} is not current: run tests/tools/network_table.py")
        return 1
    DOCUMENT.write_text(renewed(text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
