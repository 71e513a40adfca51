"""What is wrong with an inventory's variables, judged by the roles' own meta/argument_specs.yml."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

try:
    from ansible._internal._datatag._tags import Origin
except ImportError:  # where a value was written is a help, not a need
    Origin = None

FAST_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
NOT_NUMBERS = {"int": "a whole number", "float": "a number", "bool": "true or false"}
SIMILAR = 0.86  # of a whole name whose prefix is no role's: `postgers_replicas`


@dataclass
class Role:
    """The rooms of a role that tell which variables it has."""

    name: str
    path: Path
    defaults: dict[str, Any] = field(default_factory=dict)
    internal: dict[str, Any] = field(default_factory=dict)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path, loader: DataLoader) -> Role:
        """Read a role's folder."""

        def read(file: str) -> dict[str, Any]:
            place = path / file
            if not place.is_file():
                return {}
            return loader.load_from_file(str(place), cache="none", trusted_as_template=True) or {}

        return cls(path.name, path, read("defaults/main.yml"), read("vars/main.yml"), cls.read_options(path))

    @staticmethod
    def read_options(path: Path) -> dict[str, dict[str, Any]]:
        """The options that a role's meta/argument_specs.yml describes, of all its entry points; none without it."""
        # Nothing in it is templated, and Ansible's own loader takes ten times as long.
        place = path / "meta/argument_specs.yml"
        content = yaml.load(place.read_text(encoding="utf-8"), Loader=FAST_LOADER) if place.is_file() else {}
        options: dict[str, dict[str, Any]] = {}
        for spec in (content.get("argument_specs") or {}).values():
            options |= spec.get("options") or {}
        return options

    @property
    def known(self) -> set[str]:
        """Every variable that this role reads."""
        return {*self.defaults, *self.internal, *self.options}

    def scope(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The variables as a task of this role sees them."""
        own = {"role_path": str(self.path), "role_name": self.name}
        return {**self.defaults, **variables, **self.internal, **own}

    def templates(self) -> list[Path]:
        """All its templates, those in sub-folders too."""
        return sorted((self.path / "templates").rglob("*.yaml.j2"))


def written_at(*items: Any) -> str:
    """` (file:line)` of the first item that knows where it was written, else nothing."""
    for item in items:
        origin = Origin.get_tag(item) if Origin else None
        if origin and origin.path:
            path = os.path.relpath(origin.path)
            path = origin.path if path.startswith("../..") else path
            return f" ({path}:{origin.line_num})" if origin.line_num else f" ({path})"
        if origin and origin.description:
            return f" ({str(origin.description).strip('<>')})"
    return ""


def unknown_variables(variables: Mapping[str, Any], roles: Iterable[Role]) -> list[str]:
    """Names that look like a role's variable and are none: typing slips."""
    known = {name for role in roles for name in role.known}
    prefixes = tuple({f"{role.name}_" for role in roles} | {"platform_"})
    found = []
    for name, value in variables.items():
        if name in known or name.startswith(("ansible_", "__")):
            continue
        ours = name.startswith(prefixes)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.6 if ours else SIMILAR)
        if not ours and not near:
            continue
        advice = f"did you mean {near[0]}?" if near else "no role knows it: remove it, or see the README of the role."
        found.append(f"unknown variable {name}{written_at(name, value)}: {advice}")
    return sorted(found)


def value_problems(role: Role, variables: Mapping[str, Any], templar: Templar) -> list[str]:
    """Values of the wrong type, outside of the choices, missing or not to be templated; defaults are taken as right."""
    scope = role.scope(variables)
    lookup = templar.copy_with_new_env(available_variables=scope)
    found = []
    for name, spec in role.options.items():
        if name not in variables:
            if spec.get("required") and name not in role.defaults:
                found.append(f"variable {name} is not set: {_first_line(spec.get('description'))}")
            continue
        raw = variables[name]
        place = written_at(raw, name)
        try:
            value = raw if _is_plain(raw) else lookup.template(raw)
        except AnsibleError as error:
            reason = str(getattr(error, "message", "") or error).strip().splitlines()[0]
            found.append(f"variable {name}{place}: {reason.rstrip('.')}.")
            continue
        found += [f"variable {name}{place}: {text}" for text in _judge(name, spec, value)]
    return found


def typed(role: Role, variables: Mapping[str, Any], templar: Templar) -> dict[str, Any]:
    """The flags and numbers that were given as texts, as what they mean: `-e x=false` is a text, and no text is false.

    To be called for variables without problems.
    """
    lookup = templar.copy_with_new_env(available_variables=role.scope(variables))
    found = {}
    for name, spec in role.options.items():
        raw = variables.get(name)
        if spec.get("type") in NOT_NUMBERS and isinstance(raw, str):
            value = raw if _is_plain(raw) else lookup.template(raw)
            found[name] = ArgumentSpecValidator({name: spec}).validate({name: value}).validated_parameters[name]
    return found


def _is_plain(value: Any) -> bool:
    """Whether a value holds nothing to template or decrypt."""
    if isinstance(value, str):
        return "{" not in value
    if isinstance(value, dict):
        return all(_is_plain(item) for item in value.values())
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float))


def _judge(name: str, spec: dict[str, Any], value: Any) -> list[str]:
    """What an option's specification says against a value."""
    optional = "_canary_" in name  # without an image there is no canary
    if name.endswith("_image") and not optional and not str(value or "").strip():
        return ["no image: name one with its tag or digest."]
    messages = ArgumentSpecValidator({name: spec}).validate({name: value}).error_messages
    if not messages:
        return []
    shown = "its value" if spec.get("no_log") else f"{str(value)[:60]!r}"
    kind = spec.get("type", "str")
    if kind in NOT_NUMBERS and ArgumentSpecValidator({name: {"type": kind}}).validate({name: value}).error_messages:
        return [f"{shown} is not {NOT_NUMBERS[kind]}."]
    if spec.get("no_log"):
        return [f"its value is not of type {kind}."]
    return [" ".join(message.split()).rstrip(".") + "." for message in messages]


def _first_line(description: Any) -> str:
    text = description[0] if isinstance(description, list) and description else description
    return str(text or "the role needs it.").strip()
