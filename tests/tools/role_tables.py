#!/usr/bin/env python3
"""Write the table of knobs into each role's README, from meta/argument_specs.yml and defaults/main.yml.

role_tables.py            write
role_tables.py --check    exit 1 and name the READMEs that are not current
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

ROLES = Path(__file__).resolve().parents[2] / "roles"
BEGIN, END = "<!-- knobs: written by tests/tools/role_tables.py -->", "<!-- end of knobs -->"


def load(file: Path) -> dict[str, Any]:
    """A YAML file's mapping; empty where there is no file."""
    return (yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else None) or {}


def options(role: Path) -> dict[str, dict[str, Any]]:
    """The role's options as its argument_specs describe them."""
    return load(role / "meta" / "argument_specs.yml").get("argument_specs", {}).get("main", {}).get("options") or {}


def defaults(role: Path) -> dict[str, Any]:
    """The role's defaults, not templated."""
    return load(role / "defaults" / "main.yml")


def shown(value: Any) -> str:
    """A default as the table shows it, in inventory notation."""
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return "`" + text.replace("|", "\\|") + "`"


def table(role: Path) -> str:
    """The table of a role's knobs, in the order of the specs."""
    values = defaults(role)
    lines = ["| variable | type | default | meaning |", "|---|---|---|---|"]
    for name, option in options(role).items():
        description = option.get("description", "")
        text = " ".join(description) if isinstance(description, list) else description
        if option.get("choices"):
            text += " One of " + ", ".join(f"`{choice}`" for choice in option["choices"]) + "."
        kind = option.get("type", "str") + (f" of {option['elements']}" if option.get("elements") else "")
        lines.append(f"| `{name}` | {kind} | {shown(values[name]) if name in values else ''} | {text} |")
    return "\n".join(lines)


def rewritten(role: Path) -> str | None:
    """The README with its table renewed; None where there is no README or no place for the table."""
    readme = role / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    before, begin, rest = text.partition(BEGIN)
    _old, end, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(role)}\n{END}{after}" if begin and end else None


def main() -> int:
    """Write or check all READMEs; a role without the two marks is left alone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 where something is not current")
    arguments = parser.parse_args()
    stale = []
    for role in sorted(path for path in ROLES.iterdir() if path.is_dir()):
        text = rewritten(role)
        if text is None or text == (role / "README.md").read_text(encoding="utf-8"):
            continue
        stale.append(role.name)
        if not arguments.check:
            (role / "README.md").write_text(text, encoding="utf-8")
    for name in stale:
        print(
            f"roles/{name}/README.md: {'not current: run tests/tools/role_tables.py' if arguments.check else 'written'}"
        )
    return 1 if stale and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
