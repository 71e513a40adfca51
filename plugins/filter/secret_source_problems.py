"""Filter `citadelbuy.platform.secret_source_problems`: what is wrong with the source of secrets, by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.citadelbuy.platform.plugins.filter.secret_problems import OWN_KEYS, secret_problems

DOCUMENTATION = """
name: secret_source_problems
short_description: What is wrong with where secrets come from, by variable's name and never by value
version_added: 1.0.0
author: CitadelBuy Platform (@citadelbuy)
description:
  - Refuses variables of one source where another one is chosen, and a source that lacks what it needs.
  - Judges the values themselves, as P(citadelbuy.platform.secret_problems#filter) does, where the inventory has them.
options:
  _input:
    description: The variables of role secrets by name, those that begin with C(secrets_).
    type: dict
    required: true
"""
EXAMPLES = """
- name: Refuse a source without its store
  ansible.builtin.assert:
    that: (variables | citadelbuy.platform.secret_source_problems) == []
  vars:
    variables: {secrets_source: external_secrets, secrets_external_store: ""}
"""
RETURN = """
_value:
  description: One sentence a problem; empty where all is well.
  type: list
  elements: str
"""

VALUES, EXTERNAL, SEALED = "values", "external_secrets", "sealed_secrets"
BELONGS = {
    VALUES: [f"secrets_{key.lower()}" for key in OWN_KEYS] + ["secrets_generate", "secrets_third_party"],
    EXTERNAL: ["secrets_external_store", "secrets_external_path", "secrets_external_references"],
    SEALED: ["secrets_sealed"],
}
# What kubeseal prints: Base64 of two bytes of length, an RSA block and the cipher text.
SEALED_VALUE = re.compile(r"Ag[A-Za-z0-9+/]{300,}={0,2}")
KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def secret_source_problems(variables: Mapping[str, Any]) -> list[str]:
    """One sentence a problem."""
    if not isinstance(variables, Mapping):
        raise AnsibleFilterError("secret_source_problems: a dictionary of variables by name is needed.")
    source = variables.get("secrets_source", VALUES)
    found = [
        f"{name} is set, but secrets_source is {source}: remove it, or set secrets_source to {owner}."
        for owner, names in BELONGS.items()
        if owner != source
        for name in names
        if variables.get(name)
    ]
    if source == VALUES:
        own = {name: variables.get(name) for name in BELONGS[VALUES][: len(OWN_KEYS)]}
        third = variables.get("secrets_third_party")
        found += secret_problems(own, third, generate=bool(variables.get("secrets_generate")))
    elif source == EXTERNAL:
        for name in ("secrets_external_store", "secrets_external_path"):
            if not variables.get(name):
                found.append(f"{name} is empty: secrets_source {EXTERNAL} needs it.")
        for key, reference in (variables.get("secrets_external_references") or {}).items():
            if not KEY.fullmatch(str(key)):
                found.append(f"secrets_external_references.{key} is not a name for an environment variable.")
            elif not isinstance(reference, Mapping) or not reference.get("key"):
                found.append(f"secrets_external_references.{key} must be a remoteRef with a key, as in {{key: path}}.")
    elif source == SEALED:
        sealed = variables.get("secrets_sealed") or {}
        missing = [key for key in OWN_KEYS if key not in sealed]
        if missing:
            found.append(f"secrets_sealed lacks {', '.join(missing)}: seal each with kubeseal --raw.")
        for key, value in sealed.items():
            if not KEY.fullmatch(str(key)):
                found.append(f"secrets_sealed.{key} is not a name for an environment variable.")
            elif not SEALED_VALUE.fullmatch(str(value)):
                found.append(f"secrets_sealed.{key} is not what kubeseal --raw prints: seal the value, never write it.")
    return found


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Their names."""
        return {"secret_source_problems": secret_source_problems}
