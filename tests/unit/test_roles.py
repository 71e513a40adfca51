"""Roles are of one shape: the same rooms, the same knobs in defaults and argument_specs, current READMEs."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
ROLES = sorted(path.parent.parent for path in (CHECKOUT / "roles").glob("*/tasks/main.yml"))
# Of the cluster or the whole platform, so of no role alone; preflight describes them.
COMMON = re.compile(r"cluster_(kubeconfig|context)|platform_\w+")
PLATFORM = set(yaml.safe_load((CHECKOUT / "roles/preflight/defaults/main.yml").read_text())["preflight_roles"])

_spec = importlib.util.spec_from_file_location("role_tables", CHECKOUT / "tests" / "tools" / "role_tables.py")
role_tables = importlib.util.module_from_spec(_spec)
sys.modules["role_tables"] = role_tables
_spec.loader.exec_module(role_tables)

each_role = pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)


@each_role
def test_defaults_and_specs_hold_the_same_knobs(role: Path) -> None:
    own = {
        name
        for name, option in role_tables.options(role).items()
        if not option.get("required") and not COMMON.fullmatch(name)
    }
    assert set(role_tables.defaults(role)) == own


@each_role
def test_knobs_have_the_prefix_of_their_role(role: Path) -> None:
    names = [name for name in role_tables.options(role) if not COMMON.fullmatch(name)]
    assert [name for name in names if not name.startswith(f"{role.name}_")] == []


@each_role
def test_knobs_are_described_and_typed(role: Path) -> None:
    missing = [
        name
        for name, option in role_tables.options(role).items()
        if not option.get("description") or "type" not in option
    ]
    assert missing == []


@each_role
def test_literal_defaults_are_of_their_type(role: Path) -> None:
    types = {"str": str, "int": int, "bool": bool, "list": list, "dict": dict, "float": (int, float), "path": str}
    defaults = role_tables.defaults(role)
    wrong = [
        name
        for name, option in role_tables.options(role).items()
        if name in defaults
        and "{{" not in str(defaults[name])
        and not (
            isinstance(defaults[name], types[option["type"]])
            and isinstance(defaults[name], bool) == (option["type"] == "bool")
            and defaults[name] in option.get("choices", [defaults[name]])
        )
    ]
    assert wrong == []


@each_role
def test_readme_has_a_current_table_of_the_knobs(role: Path) -> None:
    text = role_tables.rewritten(role)
    if text is None and role.name not in PLATFORM:
        pytest.skip("its table is not generated")
    assert text is not None, (
        f"roles/{role.name}/README.md lacks the two marks {role_tables.BEGIN} and {role_tables.END}"
    )
    assert text == (role / "README.md").read_text(encoding="utf-8"), "run tests/tools/role_tables.py"


@each_role
def test_rooms(role: Path) -> None:
    rooms = ["defaults/main.yml", "meta/main.yml", "meta/argument_specs.yml", "tasks/main.yml", "README.md"]
    assert [room for room in rooms if not (role / room).exists()] == []
    if role.name in PLATFORM:
        manifests = sorted(path.name for path in (role / "templates").rglob("*.yaml.j2"))
        assert manifests
        assert [name for name in manifests if not re.fullmatch(r"\d\d-[a-z-]+\.yaml\.j2", name)] == []


@each_role
def test_no_role_reads_another_roles_variables(role: Path) -> None:
    others = "|".join(other.name for other in ROLES if other != role)
    foreign = re.compile(rf"(?<![\w.\"'/-])(?:{others})_[a-z_]+")
    found = {
        f"{path.relative_to(role)}: {match}"
        for path in [*role.glob("templates/**/*.j2"), *role.glob("tasks/*.yml"), *role.glob("defaults/*.yml")]
        for expression in re.findall(r"(?:{[{%]|\[\[)(.*?)(?:[%}]}|\]\])", path.read_text(encoding="utf-8"), re.DOTALL)
        for match in foreign.findall(expression)
    }
    assert found == set()


@pytest.mark.parametrize(
    "file",
    sorted((CHECKOUT / "inventories").glob("*/group_vars/clusters/*.yml")),
    ids=lambda f: str(f.relative_to(CHECKOUT)),
)
def test_inventories_set_known_variables_only(file: Path) -> None:
    if file.read_text(encoding="utf-8").startswith("$ANSIBLE_VAULT"):
        pytest.skip("encrypted")
    known = {name for role in ROLES for name in role_tables.options(role)}
    variables = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    assert [name for name in variables if name not in known and not name.startswith("ansible_")] == []


@pytest.mark.parametrize("room", ["main", "images", "sizing", "secrets"])
@pytest.mark.parametrize("inventory", ["local", "dev", "prod"])
def test_inventories_have_the_same_files(inventory: str, room: str) -> None:
    assert (CHECKOUT / "inventories" / inventory / "group_vars" / "clusters" / f"{room}.yml").exists()
